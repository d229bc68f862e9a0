"""A model as ONNX files, by PyTorch's own exporter, and how ONNX Runtime runs them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from biencoder.errors import UserError, first_line
from biencoder.model.encoder import Encoder
from biencoder.model.heads.dense import DenseHead
from biencoder.model.runtimes.padded_model import TEXTS, TOKENS, PaddedModel, without_chatter

FILE, INT8_FILE = Path("onnx", "model.onnx"), Path("onnx", "model_quantized.onnx")  # where optimum and others look
OPSET = 18
LARGEST = 1_900_000_000  # bytes of weights in one file; protobuf takes no more than 2 GiB
DATA_SUFFIX = "_data"  # of the file of larger weights: what optimum and TEI fetch from the hub


def write_onnx(encoder: Encoder, folder: Path, flag: str = "--format onnx") -> Path:
    """Write :data:`FILE` into the folder of a model, with float32 weights and any number of texts and tokens.

    Args:
        encoder: the model in the folder.
        folder: what :meth:`Encoder.save` wrote.
        flag: what a person asked for, for messages.

    Raises:
        UserError: PyTorch's exporter cannot express the model.
    """
    target = folder / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(encoder, folder, target, flag)
    return target


def export_onnx(encoder: Encoder, folder: Path, target: Path, flag: str) -> None:
    """:func:`write_onnx` to any file; weights that are too large for it lie beside it."""
    assert isinstance(encoder.head, DenseHead)
    with without_chatter(), torch.no_grad():
        model = PaddedModel(folder, encoder.head)
        names = model.inputs_from(encoder)
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        try:
            torch.onnx.export(
                model,
                (),
                target,
                kwargs={name: torch.ones(2, 9, dtype=torch.int64) for name in names},
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=[TOKENS, TEXTS],
                dynamic_shapes={name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in names},
                external_data=size > LARGEST,
            )
        except torch.onnx.OnnxExporterError as error:
            kind = encoder.backbone.config.model_type
            raise UserError(
                f"{flag}: PyTorch's exporter cannot express a {kind} model ({first_line(error)})"
            ) from error
    if size > LARGEST:
        _rename_data(target)


def _rename_data(file: Path) -> None:
    """Give the file of weights, which PyTorch names ``model.onnx.data``, the name by which others look for it."""
    import onnx

    name = file.name + DATA_SUFFIX
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    file.with_name(f"{file.name}.data").rename(file.with_name(name))
    onnx.save(model, file)


def write_onnx_int8(folder: Path) -> Path:
    """Write :data:`INT8_FILE` beside :data:`FILE`: weights in int8, activations quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with without_chatter():
        quantize_dynamic(folder / FILE, folder / INT8_FILE, weight_type=QuantType.QInt8, per_channel=True)
    return folder / INT8_FILE


class OnnxSession:
    """An ONNX file in ONNX Runtime on a CPU, with as many threads as PyTorch has."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._inputs = {each.name for each in self._session.get_inputs()}

    def __call__(self, given: Mapping[str, np.ndarray]) -> np.ndarray:
        """The vectors of texts, ``[N, D]`` float32, from those of the inputs ``[N, L]`` that the model takes."""
        vectors: np.ndarray
        (vectors,) = self._session.run([TEXTS], {name: given[name] for name in self._inputs})
        return vectors
