"""Attention on a CPU against the formula: blocks of every shape, masks, dropout, gradients."""

import math

import pytest
import torch
from attending import attend
from tiny import bf16_errors_of_attention, bytes_kept, relative_error
from torch import Tensor

from biencoder.model.attention import cpu as cpu_attention
from biencoder.model.masks import TextKeys, WeightMasks
from biencoder.model.packing import Packing

LENGTHS = (37, 37, 37, 20, 20, 5, 1)
T, H, E = sum(LENGTHS), 4, 8
PACKING = Packing(LENGTHS, torch.device("cpu"))
KEYS = TextKeys.of(3, torch.arange(len(LENGTHS)))
SITE = 2


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(T, H, E, dtype=torch.float64, generator=generator) for _ in range(3)]
    return [x.to(dtype).requires_grad_() for x in drawn]


def formula(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, window: int | None, p: float
) -> Tensor:
    """Plain autograd, text by text, over the masks of each text."""
    attended, start = [], 0
    masks = WeightMasks.of(KEYS, SITE, p)
    for text, length in enumerate(LENGTHS):
        q, k, v = (x[start : start + length].transpose(0, 1) for x in (query, key, value))
        scores = q @ k.transpose(-1, -2) * scale
        place = torch.arange(length)
        distance = place[:, None] - place
        hidden = torch.zeros(length, length, dtype=torch.bool)
        if causal:
            hidden |= distance < 0
        if window is not None:
            hidden |= distance.abs() >= window
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        if p:
            weights = weights * masks.only([text]).keep(H, length)[0] * masks.factor
        attended.append((weights @ v).transpose(0, 1))
        start += length
    return torch.cat(attended)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("block", [1, 2**20])
def test_output_and_gradients_are_those_of_the_formula(
    causal: bool, window: int | None, p: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "SCORES_AT_ONCE", block)
    query, key, value = got = inputs()
    masked = PACKING.keyed(KEYS)
    one = attend(query, key, value, masked, scale=0.3, causal=causal, window=window, dropout=p, site=SITE)
    query, key, value = want = inputs()
    other = formula(query, key, value, 0.3, causal, window, p)
    weights = torch.randn(T, H, E, dtype=torch.float64)
    (one * weights).sum().backward()
    (other * weights).sum().backward()
    assert one.is_contiguous()
    assert relative_error(one, other) < 1e-12
    for mine, theirs in zip(got, want, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert relative_error(mine.grad, theirs.grad) < 1e-12


@pytest.mark.parametrize("block", [1, 3000, 2**20])
def test_the_size_of_a_block_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = inputs()
    whole = attend(query, key, value, PACKING)
    monkeypatch.setattr(cpu_attention, "SCORES_AT_ONCE", block)
    assert relative_error(attend(query, key, value, PACKING), whole) < 1e-14


def test_with_and_without_gradient_are_the_same_attention() -> None:
    query, key, value = inputs()
    with torch.no_grad():
        flash = attend(query, key, value, PACKING)
    assert relative_error(attend(query, key, value, PACKING), flash) < 1e-12


def test_of_the_weights_only_a_byte_each_is_kept_for_the_backward_pass() -> None:
    packing = Packing((64,) * 10, torch.device("cpu"))
    query, key, value = (torch.randn(640, H, E, requires_grad=True) for _ in range(3))
    kept = bytes_kept(lambda: attend(query, key, value, packing, dropout=0.1))
    assert kept == 10 * H * 64 * 64 + 3 * query.nbytes


def test_bf16_gradients_are_as_exact_as_those_of_flash_attention() -> None:
    packing = Packing((37,) * 3, torch.device("cpu"))
    errors = bf16_errors_of_attention(lambda q, k, v: attend(q, k, v, packing), 3, 37, H, E)
    print(f"relative error of bf16 gradients: own {errors[0]:.4f}, flash attention's {errors[1]:.4f}")
    assert errors[0] < errors[1]
