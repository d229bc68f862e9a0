"""Attention with dropout on a CPU against the formula, and its masks against what chance says."""

import math

import pytest
import torch
from tiny import relative_error
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from biencoder.model.dropout import attend_with_dropout, keep_mask

N, H, L, E = 3, 4, 37, 8


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(N, H, L, E, dtype=torch.float64, generator=generator) for _ in range(3)]
    return [x.to(dtype).requires_grad_() for x in drawn]


def formula(query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Tensor | None, p: float) -> Tensor:
    """Plain autograd over the same masks."""
    scores = query @ key.transpose(-1, -2) * scale
    weights = (scores if seen is None else scores.masked_fill(~seen, -math.inf)).softmax(-1)
    keep, factor = keep_mask((N * H, L, L), p)
    return (weights * keep.view(N, H, L, L) * factor) @ value


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [False, True])
def test_output_and_gradients_are_those_of_the_formula(causal: bool, window: bool) -> None:
    mask = torch.ones(L, L).tril().triu(-5).bool() if window else None
    seen = mask if window else torch.ones(L, L).tril().bool() if causal else None
    query, key, value = got = inputs()
    torch.manual_seed(1)
    one = attend_with_dropout(query, key, value, scale=0.3, causal=causal, mask=mask, dropout=0.25)
    query, key, value = want = inputs()
    torch.manual_seed(1)
    other = formula(query, key, value, 0.3, seen, 0.25)
    weights = torch.randn(N, H, L, E, dtype=torch.float64)
    (one * weights).sum().backward()
    (other * weights).sum().backward()
    assert relative_error(one, other) < 1e-12
    for mine, theirs in zip(got, want, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert relative_error(mine.grad, theirs.grad) < 1e-12


def test_the_expectation_is_attention_without_dropout() -> None:
    query, key, value = (x.detach() for x in inputs())
    plain = scaled_dot_product_attention(query, key, value)
    torch.manual_seed(0)
    draws = [
        attend_with_dropout(query, key, value, scale=None, causal=False, mask=None, dropout=0.3) for _ in range(2000)
    ]
    assert relative_error(torch.stack(draws).mean(0), plain) < 0.02
    assert relative_error(draws[0], plain) > 0.1


def test_bf16_gradients_are_as_exact_as_those_of_flash_attention() -> None:
    def own(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend_with_dropout(query, key, value, scale=None, causal=False, mask=None, dropout=1e-9)

    def flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value)

    query, key, value = exact = inputs()
    flash(query, key, value).square().sum().backward()
    errors = []
    for attention in (own, flash):
        query, key, value = rounded = inputs(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            attention(query, key, value).float().square().sum().backward()
        pairs = [(r.grad, e.grad) for r, e in zip(rounded, exact, strict=True)]
        errors.append(max(relative_error(r, e) for r, e in pairs if r is not None and e is not None))
    print(f"relative error of bf16 gradients: own {errors[0]:.4f}, flash attention's {errors[1]:.4f}")
    assert errors[0] < 1.25 * errors[1]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.03])
def test_masks_keep_the_right_share_independently(p: float) -> None:
    torch.manual_seed(0)
    shape = (401, 999)
    keep, factor = keep_mask(shape, p)
    share, deviation = keep.double().mean().item(), math.sqrt(p * (1 - p) / keep.numel())
    assert abs(share - (1 - p)) < 4 * deviation + 2**-16
    assert abs(factor * (1 - p) - 1) < 2**-15
    centred = (keep.double() - share).flatten()
    for lag in (1, 2, 3, 4, 5, 64, 999):  # the four lanes of a draw, neighbouring draws, neighbouring rows
        correlation = (centred[lag:] * centred[:-lag]).mean() / (p * (1 - p))
        assert abs(correlation) < 5 / math.sqrt(keep.numel())


def test_the_same_seed_draws_the_same_mask_and_another_seed_another() -> None:
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(keep_mask((50, 50), 0.5)[0])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
