"""Compiled kernels for training and encoding on a CPU, where they were built and the processor can run them.

``setup.py`` builds the same source once for each kind of processor. Without a compiler there are no kernels, and
PyTorch's own operations compute the same, more slowly. We call kernels by ctypes with the addresses of tensors: nothing
is copied, and no other thread waits. They use the threads of PyTorch's OpenMP library, the first that the loader finds.
"""

import contextlib
import ctypes
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from biencoder.device.processor import features

# Fastest first: what each was compiled for.
NEEDS = {
    "amx": ("amx_tile", "amx_bf16", "avx512_bf16", "avx512_vl"),
    "avx512_bf16": ("avx512_bf16", "avx512_bw", "avx512_dq", "avx512_vl"),
    "avx2": ("avx2", "fma3"),
}
# oneDNN's own variable, by which PyTorch's products do without what a processor has: the kernels do without it too.
LIMIT = "ONEDNN_MAX_CPU_ISA"
WITHIN = {
    **dict.fromkeys(("SSE41", "AVX"), ()),
    **dict.fromkeys(("AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"), ("avx2",)),
    **dict.fromkeys(("AVX512_CORE_BF16", "AVX512_CORE_FP16"), ("avx512_bf16", "avx2")),
}
TYPES = (torch.float32, torch.bfloat16)
INTERFACE = 4  # counts changes of how kernels are called: a library that was built before one is not used
logger = logging.getLogger(__name__)
_off: ContextVar[bool] = ContextVar("off", default=False)


def kernels() -> ctypes.CDLL | None:
    """The library to call; None where there is none, or inside of :func:`without_kernels`."""
    return None if _off.get() else _loaded()


def kind() -> str | None:
    """The kind of processor that the library in use is for, a key of :data:`NEEDS`; None without a library."""
    return next((name for name in NEEDS if _library(name) is not None), None) if kernels() is not None else None


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Inside of this block PyTorch's own operations do all the work."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where its numbers begin; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def is_narrow(tensor: Tensor) -> int:
    """1 for bf16 and 0 for float32, as the kernels take it."""
    return int(tensor.dtype == torch.bfloat16)


@cache
def _loaded() -> ctypes.CDLL | None:
    return next((library for name in NEEDS if (library := _library(name)) is not None), None)


@cache
def _library(name: str) -> ctypes.CDLL | None:
    """The library for one kind of processor; None where it was not built, or this is another processor."""
    allowed = WITHIN.get(os.environ.get(LIMIT, "").upper(), tuple(NEEDS))
    has = features()
    if name not in allowed or not all(has.get(need, False) for need in NEEDS[name]):
        return None
    spec = find_spec(f"{__package__}._{name}")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:  # the loader finds no OpenMP, for example
        logger.warning("the compiled kernels cannot be loaded (%s), so biencoder is slower", error)
        return None
    return library if library.prepare(INTERFACE) else None
