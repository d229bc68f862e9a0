"""What is handed to flash attention on a GPU, where there is none: a stand-in computes what the operator says."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from attending import attend, attend_from, check_expectation
from flash_on_a_cpu import on_a_gpu
from tiny import relative_error
from torch import Tensor

from biencoder.model.attention import flash
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.packing import Packing

LENGTHS = (9, 9, 5, 1)
T, H, E = sum(LENGTHS), 4, 8
PACKING = Packing(LENGTHS, torch.device("cpu"))
SPARE = 3


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
    weights = torch.cat([torch.randn(T, H, E), torch.zeros(spare, H, E)])
    results = []
    for _ in range(2):
        attended = attend(rows[0], rows[1], rows[2], PACKING, scale=0.3, causal=causal, window=window)
        results.append([attended[:T], *torch.autograd.grad((attended * weights).sum(), rows)])
        assert attended.isfinite().all()
        request.getfixturevalue(on_a_gpu.__name__)
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_so_is_attention_from_one_token_of_each(request: pytest.FixtureRequest) -> None:
    query, key, value = inputs(H, SPARE)
    used = torch.cat([PACKING.starts[:-1].long(), torch.zeros(SPARE, dtype=torch.int64)])
    want = attend_from(query[used], key, value, PACKING, scale=0.3, dropout=0.0)
    request.getfixturevalue(on_a_gpu.__name__)
    got = attend_from(query[used], key, value, PACKING, scale=0.3, dropout=0.0)
    assert relative_error(got, want) < 1e-6
    assert got.shape == want.shape


@pytest.mark.usefixtures(on_a_gpu.__name__)
def test_dropout_is_the_cards_own_and_a_function_of_the_seed() -> None:
    query, key, value = inputs(H)
    check_expectation(lambda dropout: attend(query, key, value, PACKING, dropout=dropout))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(attend(query, key, value, PACKING, dropout=0.3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.usefixtures(on_a_gpu.__name__)
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


def test_its_gradient_can_be_asked_for_without_a_graph() -> None:
    """On tensors without numbers, with query, key and value as views of one product."""
    packing = Packing(LENGTHS, torch.device("meta"))
    qkv = torch.empty(T + SPARE, 3 * H * E, device="meta", dtype=torch.bfloat16)
    query, key, value = qkv.unflatten(1, (3, H, E)).unbind(1)
    settings = AttentionSettings(0.3, dropout=0.1)
    attended, softmax, drawn = flash.forward((query, key, value), packing, settings)
    assert attended.shape == query.shape
    made = flash.backward((query, key, value), attended, softmax, drawn, attended, packing, settings)
    assert [x.shape for x in made] == [query.shape] * 3


@pytest.mark.usefixtures(on_a_gpu.__name__)
def test_the_gradient_without_a_graph_is_that_of_the_graph() -> None:
    rows = [x.requires_grad_() for x in inputs(H, SPARE)]
    settings = AttentionSettings(0.3, dropout=0.2)
    torch.manual_seed(1)
    attended = flash.attend(rows[0], rows[1], rows[2], PACKING, settings)
    gradient = torch.randn(attended.shape)
    want = torch.autograd.grad(attended, rows, gradient)
    heads = (rows[0].detach(), rows[1].detach(), rows[2].detach())
    torch.manual_seed(1)
    again, softmax, drawn = flash.forward(heads, PACKING, settings)
    assert torch.equal(again, attended)
    for g, w in zip(flash.backward(heads, again, softmax, drawn, gradient, PACKING, settings), want, strict=True):
        torch.testing.assert_close(g, w)


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
