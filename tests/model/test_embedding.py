"""How many rows go through the layers, and that those beyond the last text change nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from native_kernels import NATIVE_SIZES
from tiny import relative_error, tiny_model

from biencoder import Encoder
from biencoder.model.packing import pack


@pytest.mark.parametrize("sizes", [{}, NATIVE_SIZES], ids=["PyTorch", "kernels"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_a_text_has_the_same_vector_and_gradient_in_any_company(
    sizes: dict[str, Any], pooling: str, tmp_path: Path
) -> None:
    encoder = Encoder.load(tiny_model(tmp_path, **sizes), pooling=pooling)
    text, others = [7, 8, 9, 10], [[20 + i for i in range(length)] for length in (33, 21)]
    alone = encoder.embed(pack([text]))
    in_company = encoder.embed(pack([*others, text]))[-1:]
    assert relative_error(in_company, alone) < 1e-6
    made = []
    for vector in (alone, in_company):
        encoder.backbone.zero_grad()
        (vector * torch.linspace(-1, 1, vector.numel())).sum().backward()
        made.append(torch.cat([p.grad.flatten() for p in encoder.backbone.parameters() if p.grad is not None]))
    assert relative_error(made[1], made[0]) < 1e-5
