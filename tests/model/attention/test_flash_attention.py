"""What is handed to flash attention on a GPU, where there is none: a stand-in computes what PyTorch's page says."""

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from attending import attend, attend_from
from tiny import relative_error
from torch import Tensor

from biencoder.model.attention import flash
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.packing import Packing

LENGTHS = (9, 9, 5, 1)
T, H, E = sum(LENGTHS), 4, 8
PACKING = Packing(LENGTHS, torch.device("cpu"))


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """By the words of ``torch.nn.attention.varlen.varlen_attn``: text by text, positions aligned at their ends."""
    assert query.dtype == key.dtype == value.dtype
    assert all(x.is_contiguous() for x in (query, key, value))
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert int(cu_seq_q.diff().max()) == max_q
    assert int(cu_seq_k.diff().max()) == max_k
    assert enable_gqa == (query.shape[1] != key.shape[1])
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    left, right = window_size
    attended = []
    for (q0, q1), (k0, k1) in zip(cu_seq_q.unfold(0, 2, 1).tolist(), cu_seq_k.unfold(0, 2, 1).tolist(), strict=True):
        scores = torch.einsum("qhe,khe->hqk", query[q0:q1], key[k0:k1]) * (scale or query.shape[-1] ** -0.5)
        ahead = torch.arange(k1 - k0) - torch.arange(q1 - q0)[:, None] - (k1 - k0) + (q1 - q0)
        hidden = torch.zeros_like(ahead, dtype=torch.bool)
        if left >= 0:
            hidden |= ahead < -left
        if right >= 0:
            hidden |= ahead > right
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        attended.append(torch.einsum("hqk,khe->qhe", weights, value[k0:k1]))
    return torch.cat(attended)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr(flash, "runs", lambda _query, _key, _value, settings: not settings.dropout)


def inputs(key_heads: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(T, heads, E, generator=generator) for heads in (H, key_heads, key_heads)]


@pytest.mark.parametrize("key_heads", [H, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 20])
def test_the_whole_row_is_what_the_texts_are_one_by_one(
    key_heads: int, causal: bool, window: int | None, request: pytest.FixtureRequest
) -> None:
    query, key, value = inputs(key_heads)
    want = attend(query, key, value, PACKING, scale=0.3, causal=causal, window=window)
    request.getfixturevalue("on_a_gpu")
    got = attend(query, key, value, PACKING, scale=0.3, causal=causal, window=window)
    assert relative_error(got, want) < 1e-6


def test_so_is_attention_from_one_token_of_each(request: pytest.FixtureRequest) -> None:
    query, key, value = inputs(H)
    used = PACKING.starts[:-1].long()
    want = attend_from(query[used], key, value, PACKING, scale=0.3, dropout=0.0)
    request.getfixturevalue("on_a_gpu")
    got = attend_from(query[used], key, value, PACKING, scale=0.3, dropout=0.0)
    assert relative_error(got, want) < 1e-6


@pytest.mark.usefixtures("on_a_gpu")
def test_rotated_queries_are_narrowed_to_the_values() -> None:
    query, key, value = inputs(H)
    got = attend(query, key, value.bfloat16(), PACKING)
    assert got.dtype == torch.bfloat16
    assert relative_error(got, attend(query, key, value, PACKING)) < 1e-2


@pytest.mark.parametrize(
    ("cuda", "dtype", "dropout", "runs"),
    [
        (True, torch.bfloat16, 0.0, True),
        (True, torch.float16, 0.0, True),
        (True, torch.float32, 0.0, False),
        (True, torch.bfloat16, 0.1, False),
        (False, torch.bfloat16, 0.0, False),
    ],
)
def test_it_runs_on_a_gpu_in_half_precision_without_dropout_and_bias(
    cuda: bool, dtype: torch.dtype, dropout: float, runs: bool
) -> None:
    value = cast("Tensor", SimpleNamespace(is_cuda=cuda, dtype=dtype))
    for bias in (None, torch.zeros(H, 9, 9)):
        settings = AttentionSettings(1.0, dropout=dropout, bias_HLL=bias)
        assert flash.runs(value, value, value, settings) == (runs and bias is None)
