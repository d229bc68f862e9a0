"""What is handed to flash attention on a GPU, where there is none: a stand-in computes what the operator says."""

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from attending import attend, attend_from, check_expectation
from tiny import relative_error
from torch import Tensor

from biencoder.model.attention import flash
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.packing import Packing

LENGTHS = (9, 9, 5, 1)
T, H, E = sum(LENGTHS), 4, 8
PACKING = Packing(LENGTHS, torch.device("cpu"))
SPARE = 3


def on_the_card(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
) -> Tensor:
    """``_flash_attention_forward`` text by text, positions aligned at their ends; dropout by PyTorch's generator."""
    assert query.dtype == key.dtype == value.dtype
    assert all(x.is_contiguous() for x in (query, key, value))
    assert cum_seq_q.dtype == cum_seq_k.dtype == torch.int32
    assert (len(query), len(key)) == (int(cum_seq_q[-1]), int(cum_seq_k[-1]))  # other rows would not be written
    assert int(cum_seq_q.diff().max()) == max_q
    assert int(cum_seq_k.diff().max()) == max_k
    assert not return_debug_mask
    if is_causal:
        assert window_size_right == 0
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    attended = []
    for (q0, q1), (k0, k1) in zip(cum_seq_q.unfold(0, 2, 1).tolist(), cum_seq_k.unfold(0, 2, 1).tolist(), strict=True):
        scores = torch.einsum("qhe,khe->hqk", query[q0:q1], key[k0:k1]) * scale
        ahead = torch.arange(k1 - k0) - torch.arange(q1 - q0)[:, None] - (k1 - k0) + (q1 - q0)
        hidden = torch.zeros_like(ahead, dtype=torch.bool)
        if window_size_left >= 0:
            hidden |= ahead < -window_size_left
        if window_size_right >= 0:
            hidden |= ahead > window_size_right
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        attended.append(torch.einsum("hqk,khe->qhe", torch.nn.functional.dropout(weights, dropout_p), value[k0:k1]))
    return torch.cat(attended)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "operator", on_the_card)
    monkeypatch.setattr(flash, "runs", lambda *_: True)


def inputs(key_heads: int, spare: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(T + spare, heads, E, generator=generator) for heads in (H, key_heads, key_heads)]


@pytest.mark.parametrize("key_heads", [H, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("spare", [0, SPARE])
def test_the_whole_row_is_what_the_texts_are_one_by_one(
    key_heads: int, causal: bool, window: int | None, spare: int, request: pytest.FixtureRequest
) -> None:
    rows = [x.requires_grad_() for x in inputs(key_heads, spare)]
    weights = torch.randn(T + spare, H, E)
    results = []
    for _ in range(2):
        attended = attend(rows[0], rows[1], rows[2], PACKING, scale=0.3, causal=causal, window=window)
        results.append([attended, *torch.autograd.grad((attended * weights).sum(), rows)])
        request.getfixturevalue("on_a_gpu")
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        assert not got[T:].any()


def test_so_is_attention_from_one_token_of_each(request: pytest.FixtureRequest) -> None:
    query, key, value = inputs(H, SPARE)
    used = torch.cat([PACKING.starts[:-1].long(), torch.zeros(SPARE, dtype=torch.int64)])
    want = attend_from(query[used], key, value, PACKING, scale=0.3, dropout=0.0)
    request.getfixturevalue("on_a_gpu")
    got = attend_from(query[used], key, value, PACKING, scale=0.3, dropout=0.0)
    assert relative_error(got, want) < 1e-6
    assert got.shape == want.shape


@pytest.mark.usefixtures("on_a_gpu")
def test_dropout_is_the_cards_own_and_a_function_of_the_seed() -> None:
    query, key, value = inputs(H)
    check_expectation(lambda dropout: attend(query, key, value, PACKING, dropout=dropout))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(attend(query, key, value, PACKING, dropout=0.3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.usefixtures("on_a_gpu")
def test_rotated_queries_are_narrowed_to_the_values() -> None:
    query, key, value = inputs(H)
    got = attend(query, key, value.bfloat16(), PACKING)
    assert got.dtype == torch.bfloat16
    assert relative_error(got, attend(query, key, value, PACKING)) < 1e-2


def test_the_operator_of_this_pytorch_takes_all_that_is_passed_and_has_a_gradient() -> None:
    """On tensors without numbers: schema, shapes and autograd are PyTorch's own."""
    assert not flash.missing_arguments()
    packing = Packing(LENGTHS, torch.device("meta"))
    rows = [x.to("meta", torch.bfloat16).requires_grad_() for x in inputs(2, SPARE)]
    settings = AttentionSettings(0.3, causal=True, window=3, dropout=0.1)
    attended = flash.attend(rows[0], rows[1], rows[2], packing, settings)
    assert attended.shape == rows[0].shape
    attended.backward(torch.empty_like(attended))
    for row in rows:
        assert row.grad is not None
        assert row.grad.shape == row.shape


def test_an_operator_that_lacks_something_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [SimpleNamespace(name=name) for name in (*flash.PLACES[:-1], "scale")]
    changed = SimpleNamespace(default=SimpleNamespace(_schema=SimpleNamespace(arguments=arguments)))
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", changed)
    assert flash.missing_arguments() == "return_debug_mask, window_size_left, window_size_right"


@pytest.mark.parametrize(
    ("kind", "capability", "size", "made"),
    [
        ("cuda", (9, 0), 64, True),
        ("cuda", (9, 0), 256, True),
        ("cuda", (8, 0), 256, True),
        ("cuda", (8, 6), 192, True),
        ("cuda", (8, 6), 256, False),
        ("cuda", (12, 0), 128, True),
        ("cuda", (9, 0), 264, False),
        ("cuda", (9, 0), 20, False),
        ("cuda", (7, 5), 64, False),
        ("cpu", (9, 0), 64, False),
    ],
)
def test_which_cards_and_heads_it_is_made_for(
    kind: str, capability: tuple[int, int], size: int, made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    flash._capability.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(flash, "_is_there", lambda: True)
    assert flash.is_made_for(torch.device(kind), size) == made
    flash._capability.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "dropout", "runs"),
    [(torch.bfloat16, 0.0, True), (torch.float16, 0.1, True), (torch.float32, 0.0, False)],
)
def test_it_runs_in_half_precision_without_a_bias(
    dtype: torch.dtype, dropout: float, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash, "is_made_for", lambda *_: True)
    value = cast("Tensor", SimpleNamespace(device="cuda", dtype=dtype, shape=(1, 1, 64)))
    for bias in (None, torch.zeros(H, 9, 9)):
        settings = AttentionSettings(1.0, dropout=dropout, bias_HLL=bias)
        assert flash.runs(value, value, value, settings) == (runs and bias is None)
