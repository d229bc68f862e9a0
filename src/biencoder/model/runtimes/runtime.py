"""The libraries that run exported models, one entry of a table for each."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from biencoder.config.choices import ONNX, OPENVINO
from biencoder.errors import require_package
from biencoder.model.encoder import Encoder
from biencoder.model.runtimes.onnx_files import OnnxSession, write_onnx, write_onnx_int8
from biencoder.model.runtimes.openvino_files import OpenVinoSession, write_openvino, write_openvino_int8

Session = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # inputs by name, [N, L] int64 -> vectors [N, D] float32


class Runtime(NamedTuple):
    """How a library's files are made and run.

    Attributes:
        packages: that the extra of the format's name brings, as they are imported.
        write: makes the file with float32 weights in a model's folder.
        write_int8: makes the one with int8 weights beside it.
        session: runs either.
    """

    packages: tuple[str, ...]
    write: Callable[[Encoder, Path], Path]
    write_int8: Callable[[Path], Path]
    session: Callable[[Path], Session]


RUNTIMES = {
    ONNX: Runtime(("onnx", "onnxruntime", "onnxscript"), write_onnx, write_onnx_int8, OnnxSession),
    OPENVINO: Runtime(("nncf", "onnx", "onnxscript", "openvino"), write_openvino, write_openvino_int8, OpenVinoSession),
}


def find_runtime(name: str) -> Runtime:
    """The runtime of a format.

    Raises:
        UserError: a package that it needs is not installed.
    """
    runtime = RUNTIMES[name]
    for package in runtime.packages:
        require_package(package, f"--format {name}", name)
    return runtime


def size(file: Path) -> int:
    """Bytes of an exported file, and of the weights that lie beside it under its name."""
    return sum(path.stat().st_size for path in file.parent.iterdir() if path.name.startswith(f"{file.stem}."))
