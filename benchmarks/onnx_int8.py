"""ONNX Runtime's dynamic int8 quantisation of the same model: what encoding in int8 costs and gives."""

from pathlib import Path

import numpy as np
import torch
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from biencoder.model.files.settings import read_settings

BATCH = 32  # texts a run, of neighbouring lengths


class Pooled(nn.Module):
    """The transformer with its pooling and normalisation, over padded texts."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.backbone = AutoModel.from_pretrained(model, attn_implementation="eager").eval()
        self.pooling = read_settings(Path(model)).pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = hidden[:, 0] if self.pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
        return nn.functional.normalize(pooled, dim=-1)


def export(model: str, file: Path) -> None:
    """Write the model with int8 weights; activations are quantised as they come."""
    inputs = (torch.ones(2, 9, dtype=torch.int64), torch.ones(2, 9, dtype=torch.int64))
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    exact = file.with_suffix(".fp32.onnx")
    torch.onnx.export(Pooled(model), inputs, exact, dynamo=True, dynamic_shapes=(dynamic, dynamic), external_data=False)
    quantize_dynamic(exact, file, weight_type=QuantType.QInt8, per_channel=True)


def encode(model: str, file: Path, texts: list[str], max_length: int) -> np.ndarray:
    """Vectors ``[N, D]``, longest texts first in batches."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(file, options, providers=["CPUExecutionProvider"])
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    order = sorted(range(len(texts)), key=lambda i: -len(ids[i]))
    vectors = np.empty((len(texts), session.get_outputs()[0].shape[-1]), np.float32)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        padded = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, return_tensors="np")
        (vectors[chosen],) = session.run(None, {name: padded[name] for name in ("input_ids", "attention_mask")})
    return vectors
