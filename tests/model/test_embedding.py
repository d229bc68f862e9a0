"""How many rows go through the layers, and that nothing beside a text changes its vector, dropout included."""

from pathlib import Path
from typing import Any

import pytest
import torch
from native_kernels import NATIVE_SIZES
from tiny import CONFIGS, DROPOUTS, relative_error, tiny_model
from torch import Tensor

from biencoder import Encoder
from biencoder.model.adapting.lora import add_lora
from biencoder.model.kernels.library import without_kernels
from biencoder.model.masks import TextKeys
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


LENGTHS = (33, 21, 21, 4, 1)  # of texts numbered 0 to 4 in their batch


@pytest.mark.parametrize("kind", [*CONFIGS, "kernels", "LoRA"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_a_text_has_the_same_dropout_in_any_company(kind: str, pooling: str, tmp_path: Path) -> None:
    """Packed and padded, by kernels and without, in the whole last layer and for the pooled token alone."""
    sizes = NATIVE_SIZES if kind == "kernels" else {}
    known = kind if kind in CONFIGS else "bert"
    everywhere = dict.fromkeys(DROPOUTS, 0.2)
    encoder = Encoder.load(tiny_model(tmp_path, known, **sizes | everywhere), pooling=pooling)
    if kind == "LoRA":
        add_lora(encoder.backbone, rank=2, alpha=4.0, dropout=0.3, first_layer=0, base="base", seed=0)
        for name, parameter in encoder.backbone.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    encoder.train()

    def vectors(texts: list[int], step: int = 1) -> Tensor:
        keys = TextKeys.of(step, torch.tensor(texts))
        return encoder.embed(pack([[5 + (7 * n + i) % 150 for i in range(LENGTHS[n])] for n in texts]).keyed(keys))

    whole = vectors([0, 1, 2, 3, 4])
    assert relative_error(vectors([3, 1, 4]), whole[[3, 1, 4]]) < 1e-5
    assert relative_error(vectors([2]), whole[2:3]) < 1e-5
    with without_kernels():
        assert relative_error(vectors([4, 2, 0, 1]), whole[[4, 2, 0, 1]]) < 1e-5
    assert relative_error(vectors([0, 1, 2, 3, 4], step=2), whole) > 1e-2
