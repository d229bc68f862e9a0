"""A layer as it is written out for a GPU computes what its authors wrote, forward and backward."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flash_on_a_cpu import on_a_gpu
from layers import bf16_errors_of_layers, count_calls
from tiny import gradient_errors, relative_error, tiny_model, vectors_and_gradients
from torch import Tensor

from biencoder import Encoder
from biencoder.device.cpu import Cpu
from biencoder.model.adapting.lora import add_lora
from biencoder.model.architectures import card_layer, native_layer
from biencoder.model.architectures.bert import BERT_LIKE, bert_layers
from biencoder.model.architectures.native_layer import prepared_weights
from biencoder.model.attention import flash
from biencoder.model.kernels import linear as kernels_linear
from biencoder.model.kernels.library import without_kernels
from biencoder.model.packing import pack

pytestmark = pytest.mark.usefixtures(on_a_gpu.__name__, "in_float32")

LENGTHS = (60, 17, 17, 3, 1)
BATCH = pack([[5 + (7 * place + length) % 150 for place in range(length)] for length in LENGTHS])


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without compiled kernels; products are float32 where a test does not ask for autocast."""
    before = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float32)
    monkeypatch.setattr(card_layer, "runs", lambda *_: True)
    with without_kernels():
        yield
    torch.set_autocast_dtype("cpu", before)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the layers that run so."""
    return count_calls(monkeypatch, card_layer._Layer)


def load(folder: Path, kind: str = "bert", *, pooling: str = "mean", **changes: Any) -> Encoder:
    encoder = Encoder.load(tiny_model(folder, kind, **changes), pooling=pooling, normalize=True)
    encoder.precision = None  # as the caller has set it
    encoder.train()
    return encoder


@pytest.mark.parametrize("kind", sorted(BERT_LIKE))
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("spare", [0, 37])
def test_vectors_and_gradients_are_those_of_the_authors(
    kind: str, pooling: str, spare: int, tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cpu, "rows_of_products", lambda _, count: count + spare)
    encoder = load(tmp_path, kind, pooling=pooling)
    vectors, got = vectors_and_gradients(encoder, BATCH)
    layers = 2 if pooling == "mean" else 1  # under cls pooling the last layer is for the first tokens
    assert len(calls) == layers
    monkeypatch.setattr(card_layer, "runs", lambda *_: False)
    monkeypatch.setattr(flash, "runs", lambda *_: False)
    expected, want = vectors_and_gradients(encoder, BATCH)
    assert len(calls) == layers
    assert relative_error(vectors, expected) < 1e-6
    for name in [name for name in want if name.endswith("key.bias")]:  # zero but for rounding
        del got[name], want[name]
    assert max(gradient_errors(got, want)) < 1e-5


def test_dropout_is_drawn_from_the_seed_and_again_in_the_backward_pass(tmp_path: Path) -> None:
    """The gradient of a loss under one seed is its slope: a wrong mask in the backward pass would not give that."""
    encoder = load(tmp_path, dropout=True)
    weight = encoder.backbone.get_parameter("encoder.layer.0.attention.self.value.weight")

    def loss() -> Tensor:
        torch.manual_seed(3)
        return encoder.embed(BATCH)[:, 0].sum()

    assert torch.equal(loss(), loss())
    loss().backward()
    assert weight.grad is not None
    direction = weight.grad / weight.grad.norm()
    with torch.no_grad():
        values = []
        for step in (1e-2, -1e-2):
            weight += step * direction
            values.append(float(loss()))
            weight -= step * direction
    slope = (values[0] - values[1]) / 2e-2
    assert slope == pytest.approx(float(weight.grad.norm()), rel=2e-2)


def test_bf16_is_as_near_to_the_exact_gradient_as_transformers_under_autocast(tmp_path: Path) -> None:
    errors = torch.tensor([bf16_errors_of_layers(tmp_path / str(seed), seed) for seed in range(6)])
    got, want = errors.mean(0).tolist()
    assert want > 1e-3
    assert got < 1.05 * want


def test_weights_are_narrowed_once_for_all_chunks_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(tmp_path)
    alone = encoder.embed(BATCH)
    made: list[torch.dtype] = []
    linear = kernels_linear.linear

    def counted(modules: Any, dtype: torch.dtype, **backward: Any) -> Any:
        made.append(dtype)
        return linear(modules, dtype, **backward)

    monkeypatch.setattr(native_layer, "linear", counted)
    with prepared_weights():
        for _ in range(3):
            assert torch.equal(encoder.embed(BATCH), alone)
    assert len(made) == 2 * 4  # layers, and products of one


def test_frozen_weights_get_no_gradient(tmp_path: Path) -> None:
    encoder = load(tmp_path)
    frozen = encoder.backbone.get_parameter("encoder.layer.1.output.dense.weight").requires_grad_(False)
    vectors_and_gradients(encoder, BATCH)
    assert frozen.grad is None
    encoder.backbone.requires_grad_(False)
    assert not encoder.embed(BATCH).requires_grad


def test_which_layers_run_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(flash, "is_made_for", lambda *_: True)
    encoder = load(tmp_path)
    layer, hidden = bert_layers(encoder.backbone)[0], torch.zeros(1, 3, encoder.dim)
    assert not card_layer.runs(layer, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        assert card_layer.runs(layer, hidden)
        assert not card_layer.runs(layer, hidden.double())
        assert not card_layer.runs(bert_layers(load(tmp_path / "relu", hidden_act="relu").backbone)[0], hidden)
        add_lora(encoder.backbone, rank=2, alpha=4.0, dropout=0.0, first_layer=0, base="base", seed=0)
        assert not card_layer.runs(layer, hidden)
