"""Attention in a few padded matrices, as on a GPU without flash attention, against attention text by text."""

from unittest.mock import Mock

import pytest
import torch
from tiny import relative_error
from torch import Tensor

from biencoder.model.attention import blocks, buckets, cpu, dropped
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.masks import TextKeys
from biencoder.model.packing import MOST_BUCKETS, Packing

H, E, SPARE = 4, 8, 2
FEW = (9, 2, 9, 5, 1)  # of no more lengths than there may be buckets, and in no order
MANY = tuple(range(1, 31))


def packing_of(lengths: tuple[int, ...]) -> Packing:
    return Packing(lengths, torch.device("cpu"))


def inputs(lengths: tuple[int, ...], key_heads: int = H) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = sum(lengths) + SPARE
    return [torch.randn(rows, heads, E, generator=generator).requires_grad_() for heads in (H, key_heads, key_heads)]


def check_equal(results: list[list[Tensor]]) -> None:
    for want, got in zip(*results, strict=True):
        assert got.isfinite().all()
        assert relative_error(got, want) < 2e-6


@pytest.mark.parametrize("lengths", [FEW, MANY, MANY[::-1], (7,)])
@pytest.mark.parametrize("key_heads", [H, 2])
@pytest.mark.parametrize(
    ("causal", "window", "biased"),
    [(False, None, False), (True, None, False), (False, 3, False), (True, 3, False), (False, None, True)],
)
def test_values_and_gradients_are_those_of_each_text_alone(
    lengths: tuple[int, ...], key_heads: int, causal: bool, window: int | None, biased: bool
) -> None:
    rows, longest = inputs(lengths, key_heads), max(lengths)
    bias = torch.randn(H, longest, longest).requires_grad_() if biased else None
    settings = AttentionSettings(0.3, causal=causal, window=window, bias_HLL=bias)
    learned = rows if bias is None else [*rows, bias]
    weights = torch.randn(len(rows[0]), H, E)
    results = []
    for provider in (blocks, buckets):
        attended = provider.attend(rows[0], rows[1], rows[2], packing_of(lengths), settings)
        results.append([attended, *torch.autograd.grad((attended * weights).sum(), learned)])
    check_equal(results)


@pytest.mark.parametrize("lengths", [FEW, MANY])
def test_so_are_those_from_one_token_of_each(lengths: tuple[int, ...]) -> None:
    query, key, value = inputs(lengths)
    used = query[: len(lengths) + 1].detach().requires_grad_()
    results = []
    for provider in (blocks, buckets):
        attended = provider.attend_from(used, key, value, packing_of(lengths), AttentionSettings(0.3))
        results.append([attended, *torch.autograd.grad((attended * attended.detach()).sum(), [used, key, value])])
    check_equal(results)


@pytest.mark.parametrize("lengths", [FEW, MANY])
@pytest.mark.parametrize(("causal", "window", "biased"), [(False, None, True), (True, None, False), (True, 3, False)])
def test_the_same_weights_are_dropped_as_elsewhere(
    lengths: tuple[int, ...], causal: bool, window: int | None, biased: bool
) -> None:
    """Also where the backward pass computes them again, and of a bias."""
    rows, longest = inputs(lengths), max(lengths)
    bias = torch.randn(H, longest, longest).requires_grad_() if biased else None
    settings = AttentionSettings(0.3, causal=causal, window=window, dropout=0.4, site=5, bias_HLL=bias)
    packing = packing_of(lengths).keyed(TextKeys.of(1, torch.arange(len(lengths))))
    learned = rows if bias is None else [*rows, bias]
    weights = torch.randn(len(rows[0]), H, E)
    results = []
    for provider in (blocks, buckets) if biased else (cpu, blocks, buckets):
        attended = provider.attend(rows[0], rows[1], rows[2], packing, settings)
        attended = attended * (torch.arange(len(attended)) < packing.tokens)[:, None, None]
        results.append([attended, *torch.autograd.grad((attended * weights).sum(), learned)])
    for other in results[1:]:
        check_equal([results[0], other])


@pytest.mark.parametrize("lengths", [FEW, MANY])
def test_so_are_those_from_one_token_of_each_text(lengths: tuple[int, ...]) -> None:
    query, key, value = inputs(lengths)
    packing = packing_of(lengths).keyed(TextKeys.of(1, torch.arange(len(lengths))))
    last = packing.starts[1:].long() - 1
    packing, settings = packing.using(last), AttentionSettings(0.3, dropout=0.4, site=5)
    want = cpu.attend(query, key, value, packing, settings)[last]
    for provider in (blocks, buckets):
        assert relative_error(provider.attend_from(query[last], key, value, packing, settings), want) < 2e-6


@pytest.mark.parametrize("lengths", [FEW, MANY, (3,) * 5, tuple(range(1, 513))])
def test_there_are_few_buckets_and_every_token_has_one_place(lengths: tuple[int, ...]) -> None:
    packing = packing_of(lengths)
    padding = packing.padding
    assert len(padding.buckets) <= MOST_BUCKETS
    assert len(padding.real) == sum(bucket.texts * bucket.length for bucket in padding.buckets)
    assert torch.equal(padding.to_row[padding.from_row], torch.arange(packing.tokens))
    assert int(padding.real.sum()) == packing.tokens
    assert sorted(padding.texts.tolist()) == list(range(len(lengths)))
    if len(set(lengths)) <= MOST_BUCKETS:
        assert padding.real.all()
    else:
        assert float(padding.real.double().mean()) > 0.8


def test_the_number_of_calls_does_not_grow_with_the_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Mock(wraps=torch.nn.functional.scaled_dot_product_attention)
    monkeypatch.setattr(dropped, "scaled_dot_product_attention", counted)
    query, key, value = inputs(MANY)
    buckets.attend(query, key, value, packing_of(MANY), AttentionSettings(0.3))
    assert counted.call_count == MOST_BUCKETS


def test_it_runs_on_every_device_but_a_cpu() -> None:
    settings = AttentionSettings(0.3)
    for device, runs in (("cpu", False), ("meta", True)):
        row = torch.empty(3, H, E, device=device)
        assert buckets.runs(row, row, row, settings) == runs
    assert blocks.runs(row, row, row, settings)
