"""What tests of layers that are written out have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import gradient_errors, gradients, padded, pool, tiny_model
from torch import Tensor
from transformers import AutoModel

from biencoder import Encoder
from biencoder.model.packing import pack


def count_calls(monkeypatch: pytest.MonkeyPatch, layer: type[torch.autograd.Function]) -> list[int]:
    """A list that grows by one with each layer that runs so."""
    counted: list[int] = []
    apply: Callable[..., Tensor] = layer.apply

    def count(*args: Any) -> Tensor:
        counted.append(1)
        return apply(*args)

    monkeypatch.setattr(layer, "apply", count)
    return counted


def bf16_errors_of_layers(folder: Path, seed: int, **sizes: Any) -> tuple[float, float]:
    """Relative error of the bf16 gradient of all weights against float64: own, and transformers' under autocast."""
    tiny_model(folder, **sizes, num_hidden_layers=4, seed=seed)
    encoder = Encoder.load(folder, pooling="mean", normalize=False, precision="bf16")
    encoder.train()
    inputs = padded([90, 70, 64, 30] * 4, seed=seed)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(*inputs.values(), strict=True)]
    weights = torch.randn(len(rows), encoder.dim, generator=torch.Generator().manual_seed(seed))

    def of_transformers(dtype: torch.dtype, autocast: bool) -> dict[str, Tensor]:
        model = AutoModel.from_pretrained(folder, attn_implementation="sdpa", dtype=dtype).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = model(**inputs).last_hidden_state
        (pool(hidden.to(dtype), inputs["attention_mask"], "mean") * weights).sum().backward()
        return gradients(model)

    exact = of_transformers(torch.float64, autocast=False)
    (encoder.embed(pack(rows)) * weights).sum().backward()
    own, theirs = gradients(encoder.backbone), of_transformers(torch.float32, autocast=True)
    got, want = (gradient_errors({name: g[name] for name in exact}, exact)[1] for g in (own, theirs))
    return got, want
