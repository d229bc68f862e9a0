"""Attention over a packed row against its formula, one text after the other, in float64."""

import pytest
import torch
from attending import attend
from tiny import relative_error
from torch import Tensor

from biencoder.model.attention.interface import active_packing, packed
from biencoder.model.packing import Block, Packing

LENGTHS = (6, 6, 1, 9, 3, 3, 3)
HEADS, KEY_HEADS, SIZE = 4, 2, 8
TOKENS = sum(LENGTHS)
PACKING = Packing(LENGTHS, torch.device("cpu"))


def draw(heads: int, seed: int) -> Tensor:
    return torch.randn(TOKENS, heads, SIZE, generator=torch.Generator().manual_seed(seed))


def by_definition(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, window: int | None, bias: Tensor | None
) -> Tensor:
    out, start = torch.zeros(TOKENS, HEADS, SIZE, dtype=torch.float64), 0
    for length in LENGTHS:
        for head in range(HEADS):
            shared = head // (HEADS // key.shape[1])
            for i in range(length):
                seen = [j for j in range(length) if (not causal or j <= i) and (window is None or abs(i - j) < window)]
                scores = torch.stack([query[start + i, head] @ key[start + j, shared] * SIZE**-0.5 for j in seen])
                if bias is not None:
                    scores = scores + bias[head, i, seen]
                weights = scores.softmax(0)
                out[start + i, head] = sum(w * value[start + j, shared] for w, j in zip(weights, seen, strict=True))
        start += length
    return out


@pytest.mark.parametrize("key_heads", [HEADS, KEY_HEADS])
@pytest.mark.parametrize(
    ("causal", "window", "biased"),
    [(False, None, False), (True, None, False), (False, 3, False), (True, 3, False), (False, None, True)],
)
def test_attention_is_its_formula(key_heads: int, causal: bool, window: int | None, biased: bool) -> None:
    query, key, value = draw(HEADS, 1), draw(key_heads, 2), draw(key_heads, 3)
    bias = torch.randn(HEADS, 9, 9, generator=torch.Generator().manual_seed(4)) if biased else None
    inputs = [query, key, value, *([bias] if bias is not None else [])]
    exact = [x.double().requires_grad_() for x in inputs]
    for x in inputs:
        x.requires_grad_()
    got = attend(query, key, value, PACKING, causal=causal, window=window, bias_HLL=bias)
    want = by_definition(exact[0], exact[1], exact[2], causal, window, exact[3] if biased else None)
    weights = draw(HEADS, 5)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    errors = [relative_error(got, want)]
    for x, reference in zip(inputs, exact, strict=True):
        assert x.grad is not None
        assert reference.grad is not None
        errors.append(relative_error(x.grad, reference.grad))
    assert got.is_contiguous()
    assert max(errors) <= 2e-6


def test_texts_do_not_see_each_other() -> None:
    query, key, value = (draw(HEADS, seed) for seed in (1, 2, 3))
    before = attend(query, key, value, PACKING)
    changed = value.clone()
    changed[6:12] += 1  # the second text
    moved = (attend(query, key, changed, PACKING) - before).abs().amax((1, 2)) > 0
    assert moved.nonzero().flatten().tolist() == list(range(6, 12))


def test_dropout_drops_weights_and_keeps_their_expectation() -> None:
    query, key = draw(HEADS, 1), draw(HEADS, 2)
    value = torch.ones(TOKENS, HEADS, SIZE)  # so that what comes out is the sum of the weights that are left
    torch.manual_seed(0)
    sums = torch.stack([attend(query, key, value, PACKING, dropout=0.25)[..., 0] for _ in range(1000)])
    alone = sum(LENGTHS[:2])  # the token that sees itself only: its one weight is either dropped or divided by 0.75
    assert sums[:, alone].unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float((sums[:, alone] == 0).double().mean()) == pytest.approx(0.25, abs=0.02)
    standard_error = sums.std(0) / len(sums) ** 0.5
    assert ((sums.mean(0) - 1).abs() / standard_error).max() < 5


def test_blocks_are_neighbours_of_equal_length() -> None:
    assert PACKING.blocks == [Block(0, 2, 6, 0), Block(12, 1, 1, 2), Block(13, 1, 9, 3), Block(22, 3, 3, 4)]
    assert PACKING.starts.tolist() == [0, 6, 12, 13, 22, 25, 28, 31]
    assert [block.tokens.stop for block in PACKING.blocks] == [12, 13, 22, 31]
    assert [block.numbers for block in PACKING.blocks[-1].cut(2)] == [slice(4, 6), slice(6, 7)]


def test_a_packed_pass_ends_also_after_an_error() -> None:
    seen = []

    def fail() -> None:
        with packed(PACKING):
            seen.append(active_packing())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [PACKING]
    assert active_packing() is None
