"""Builds the kernels of ``biencoder.model.kernels`` where there is a compiler; pyproject.toml holds everything else.

One library for each kind of processor, out of the same source: which one runs is decided when it is loaded. They are
plain C for ctypes, with the ending of extension modules. None is needed: without one, PyTorch's own operations compute
the same, slower. ``BIENCODER_KERNELS=0`` builds none, for a wheel that any system takes.
"""

import os
import platform
import sys

from setuptools import Extension, setup

AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mavx2 -mfma -mprefer-vector-width=512"
FLAGS = {
    "avx2": "-mavx2 -mfma",
    "avx512_bf16": AVX512,
    "amx": f"{AVX512} -mamx-tile -mamx-bf16 -mprfchw",
}
COMMON = "-std=c++17 -O3 -g0 -fno-math-errno -fno-trapping-math -fopenmp -Wno-psabi -Wno-maybe-uninitialized"
FOLDER = "src/biencoder/model/kernels"

kernels = [
    Extension(
        f"biencoder.model.kernels._{name}",
        sources=[f"{FOLDER}/attention.cpp", f"{FOLDER}/layers.cpp", f"{FOLDER}/linear.cpp"],
        depends=[f"{FOLDER}/vectors.h", f"{FOLDER}/products.h"],
        extra_compile_args=[*COMMON.split(), *flags.split()],
        extra_link_args=["-fopenmp"],
        optional=True,
    )
    for name, flags in FLAGS.items()
]
wanted = sys.platform == "linux" and platform.machine() == "x86_64" and os.environ.get("BIENCODER_KERNELS") != "0"
setup(ext_modules=kernels if wanted else [])
