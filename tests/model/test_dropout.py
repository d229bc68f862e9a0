"""Dropout's masks against what chance says, and its gradient against the formula."""

import math
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from torch import nn

from biencoder.model.dropout import Dropout, keep_mask
from biencoder.model.files.pretrained import load_backbone


@pytest.mark.parametrize("p", [0.1, 0.5, 0.03])
def test_masks_keep_the_right_share_independently(p: float) -> None:
    torch.manual_seed(0)
    shape = (401, 999)
    keep, factor = keep_mask(shape, p)
    share, deviation = keep.double().mean().item(), math.sqrt(p * (1 - p) / keep.numel())
    assert set(keep.unique().tolist()) == {0, 1}
    assert abs(share - (1 - p)) < 4 * deviation + 2**-16
    assert abs(factor * (1 - p) - 1) < 2**-15
    centred = (keep.double() - share).flatten()
    for lag in (1, 2, 3, 4, 5, 64, 999):  # the four lanes of a draw, neighbouring draws, neighbouring rows
        correlation = (centred[lag:] * centred[:-lag]).mean() / (p * (1 - p))
        assert abs(correlation) < 5 / math.sqrt(keep.numel())


def test_a_probability_just_below_1_leaves_a_factor() -> None:
    keep, factor = keep_mask((64, 64), 0.999999)
    assert factor == 2**16
    assert keep.sum() <= 3


def test_masks_of_neighbouring_draws_and_seeds_are_independent() -> None:
    """Of the heads, layers, chunks and ranks, that is, each of which draws or seeds anew."""
    masks = []
    for seed in range(20):
        torch.manual_seed(seed)
        masks += [keep_mask((100_000,), 0.1)[0].double() for _ in range(5)]
    centred = torch.stack(masks) - 0.9
    correlations = (centred @ centred.T / (0.09 * 100_000)).fill_diagonal_(0)
    assert correlations.abs().max() < 5 / math.sqrt(100_000)


def test_the_same_seed_draws_the_same_mask_and_another_seed_another() -> None:
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(keep_mask((50, 50), 0.5)[0])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_and_gradient_are_the_input_times_mask_and_factor(dtype: torch.dtype) -> None:
    values = torch.randn(7, 9, dtype=dtype, requires_grad=True)
    torch.manual_seed(3)
    out = Dropout(0.3)(values)
    torch.manual_seed(3)
    keep, factor = keep_mask((7, 9), 0.3)
    assert torch.equal(out, values * factor * keep)
    out.backward(torch.ones_like(out))
    assert values.grad is not None
    assert torch.equal(values.grad, torch.full_like(values, factor) * keep)


def test_outside_of_training_and_at_the_ends_it_is_pytorchs() -> None:
    values = torch.randn(5, 5)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    assert torch.equal(Dropout(1.0)(values), torch.zeros(5, 5))


def test_a_loaded_backbone_has_no_other(tmp_path: Path) -> None:
    backbone = load_backbone(tiny_model(tmp_path, dropout=True), dropout=0.25)
    found = [module for module in backbone.modules() if isinstance(module, nn.Dropout)]
    assert found
    assert all(type(module) is Dropout and module.p == 0.25 and not module.training for module in found)
