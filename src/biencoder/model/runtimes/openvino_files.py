"""A model as OpenVINO's files, made from its ONNX file, and how OpenVINO runs them.

OpenVINO reads PyTorch models itself, but not all that PyTorch's own exporter expresses: of our architectures, it
refuses Qwen3.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from biencoder.model.encoder import Encoder
from biencoder.model.runtimes.onnx_files import export_onnx
from biencoder.model.runtimes.padded_model import TEXTS, without_chatter

# Where optimum-intel looks, and the name that sentence-transformers gives to quantised weights.
FILE = Path("openvino", "openvino_model.xml")
INT8_FILE = Path("openvino", "openvino_model_qint8_quantized.xml")

# Where this package can be imported, openvino and nncf report to their makers that they are used. Neither needs it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def write_openvino(encoder: Encoder, folder: Path) -> Path:
    """Write :data:`FILE` into the folder of a model, with float32 weights and any number of texts and tokens.

    Args:
        encoder: the model in the folder.
        folder: what :meth:`Encoder.save` wrote.

    Raises:
        UserError: PyTorch's exporter cannot express the model.
    """
    import openvino

    with tempfile.TemporaryDirectory(prefix=".onnx.", suffix=".tmp", dir=folder) as place:
        export_onnx(encoder, folder, Path(place, "model.onnx"), "--format openvino")
        _save(openvino.Core().read_model(Path(place, "model.onnx")), folder / FILE)
    return folder / FILE


def write_openvino_int8(folder: Path) -> Path:
    """Write :data:`INT8_FILE` beside :data:`FILE`: weights in int8, with a scale for each row."""
    import nncf
    import openvino

    with without_chatter():
        _save(nncf.compress_weights(openvino.Core().read_model(folder / FILE)), folder / INT8_FILE)
    return folder / INT8_FILE


def _save(model: Any, file: Path) -> None:
    import openvino

    openvino.save_model(model, file, compress_to_fp16=False)


class OpenVinoSession:
    """An OpenVINO file on a CPU, in float32 and with as many threads as PyTorch has.

    Where a processor has bfloat16, OpenVINO would compute in that by itself.
    """

    def __init__(self, file: Path) -> None:
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self._model = openvino.Core().compile_model(file, "CPU", settings)
        self._inputs = {each.any_name for each in self._model.inputs}

    def __call__(self, given: Mapping[str, np.ndarray]) -> np.ndarray:
        """The vectors of texts, ``[N, D]`` float32, from those of the inputs ``[N, L]`` that the model takes."""
        vectors: np.ndarray = self._model({name: given[name] for name in self._inputs})[TEXTS]
        return vectors
