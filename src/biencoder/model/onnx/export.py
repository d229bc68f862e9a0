"""A model as an ONNX file: from token ids to token vectors and to the vector of each text.

Shapes: N texts, L tokens of the longest, H hidden size, D dimensions of a vector.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as unit_length
from transformers import AutoModel

from biencoder.config.choices import CLS, LAST
from biencoder.errors import UserError
from biencoder.model.encoder import Encoder
from biencoder.model.files.pretrained import quiet
from biencoder.model.heads.dense import DenseHead

FILE, INT8_FILE = Path("onnx", "model.onnx"), Path("onnx", "model_quantized.onnx")  # where optimum and others look
OPSET = 18
TOKENS, TEXTS = "last_hidden_state", "sentence_embedding"  # outputs, by the names that other libraries know
LARGEST = 1_900_000_000  # bytes of weights in one file; protobuf takes no more than 2 GiB


class PaddedModel(nn.Module):
    """A model over padded texts: the transformer as transformers runs it, and our head.

    Args:
        folder: of the model.
        head: pools, projects and normalises.
    """

    def __init__(self, folder: Path, head: DenseHead) -> None:
        super().__init__()
        self.backbone = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        self.pooling, self.normalize, self.layers = head.pooling, head.normalize, head.layers

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``[N, L]`` each -> token vectors ``[N, L, H]`` and the vectors of the texts ``[N, D]``."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden_NLH = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        vectors_ND = self.pooled(hidden_NLH, attention_mask)
        for layer in self.layers:
            vectors_ND = layer(vectors_ND)
        return hidden_NLH, unit_length(vectors_ND, dim=-1) if self.normalize else vectors_ND

    def pooled(self, hidden_NLH: Tensor, mask_NL: Tensor) -> Tensor:
        """One vector a text, ``[N, H]``, whichever side is padded."""
        if self.pooling in (CLS, LAST):
            place_L = torch.arange(1, mask_NL.shape[1] + 1, device=mask_NL.device)
            nearness_NL = mask_NL * (place_L if self.pooling == LAST else place_L.flip(0))
            at_N11 = nearness_NL.argmax(dim=1)[:, None, None].expand(-1, 1, hidden_NLH.shape[2])
            return hidden_NLH.gather(1, at_N11).squeeze(1)
        mask_NL1 = mask_NL.unsqueeze(-1).to(hidden_NLH.dtype)
        return (hidden_NLH * mask_NL1).sum(dim=1) / mask_NL1.sum(dim=1)


def write_onnx(encoder: Encoder, folder: Path) -> Path:
    """Write :data:`FILE` into the folder of a model, with float32 weights and any number of texts and tokens.

    Args:
        encoder: the model in the folder.
        folder: what :meth:`Encoder.save` wrote.

    Raises:
        UserError: the extra is missing, or PyTorch's exporter cannot express the model.
    """
    require_packages()
    assert isinstance(encoder.head, DenseHead)
    target = folder / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    with _quietly(), torch.no_grad():
        model = PaddedModel(folder, encoder.head)
        names = _inputs(encoder, model.backbone)
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
            raise UserError(
                f"--format onnx: PyTorch's exporter cannot express a {encoder.backbone.config.model_type} model "
                f"({str(error).strip().splitlines()[0]})"
            ) from error
    return target


def write_int8(folder: Path) -> Path:
    """Write :data:`INT8_FILE` beside :data:`FILE`: weights in int8, activations quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quietly():
        quantize_dynamic(folder / FILE, folder / INT8_FILE, weight_type=QuantType.QInt8, per_channel=True)
    return folder / INT8_FILE


def _inputs(encoder: Encoder, backbone: Any) -> list[str]:
    """What the model takes of what its tokenizer gives."""
    takes_types = "token_type_ids" in encoder.tokenizer.model_input_names
    has_types = takes_types and getattr(backbone.config, "type_vocab_size", 0) > 0
    return ["input_ids", "attention_mask", *(["token_type_ids"] if has_types else [])]


def require_packages() -> None:
    """Raise `UserError` where a package of the extra ``onnx`` is missing."""
    try:
        import onnx  # noqa: F401 - its absence would be told late, and in other words
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx needs {error.name}: pip install 'biencoder[onnx]'") from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without progress, warnings and logs of the libraries; errors are raised."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), quiet(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
