"""Weights that are narrowed once for a step give the numbers of autocast."""

from pathlib import Path

import pytest
import torch
from tiny import gradients, tiny_model
from torch import Tensor, nn

from biencoder import Encoder
from biencoder.model.architectures import narrowing
from biencoder.model.architectures.narrowing import NarrowWeights, _places, narrow_weights
from biencoder.model.packing import pack

BATCHES = [pack([[5 + (7 * p + n) % 150 for p in range(n)] for n in lengths]) for lengths in ((30, 9, 4), (25, 3))]


def load(folder: Path, kind: str = "qwen3", precision: str = "bf16") -> Encoder:
    pooling = "last" if kind == "qwen3" else "mean"
    return Encoder.load(tiny_model(folder, kind), pooling=pooling, normalize=False, precision=precision).train()


def step(encoder: Encoder) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Vectors and gradients of two chunks, whose graphs are both kept."""
    with narrow_weights(encoder.backbone, encoder.precision) as narrow:
        vectors = [encoder.embed(batch) for batch in BATCHES]
        for found in vectors:
            found.sum().backward()
            narrow.hand_over()
    return [found.detach() for found in vectors], gradients(encoder.backbone)


@pytest.mark.parametrize("kind", ["qwen3", "modernbert", "mpnet", "nomic_bert"])
def test_numbers_are_those_of_autocast_to_the_bit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(tmp_path, kind)
    vectors, want = step(encoder)
    for parameter in encoder.parameters():
        parameter.grad = None
    monkeypatch.setattr(narrowing, "CUDA", "cpu")
    again, got = step(encoder)
    assert all(torch.equal(a, v) for a, v in zip(again, vectors, strict=True))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert all(gradient.dtype == torch.float32 for gradient in got.values())


def test_the_weights_come_back_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowing, "CUDA", "cpu")
    encoder = load(tmp_path)
    before = dict(encoder.named_parameters())

    def fail() -> None:
        with narrow_weights(encoder.backbone, encoder.precision):
            assert any(p.dtype == torch.bfloat16 for p in encoder.parameters())
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert all(parameter is before[name] for name, parameter in encoder.named_parameters())


@pytest.mark.parametrize(("kind", "precision"), [("qwen3", "fp32"), ("bert", "bf16")])
def test_nothing_is_narrowed_where_nothing_is_saved(
    kind: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrowing, "CUDA", "cpu")
    encoder = load(tmp_path, kind, precision)
    with narrow_weights(encoder.backbone, encoder.precision):
        assert all(parameter.dtype == torch.float32 for parameter in encoder.parameters())


def test_a_weight_of_two_layers_collects_both_gradients_and_a_frozen_one_none() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    first.weight.requires_grad_(False)
    third = nn.Linear(4, 4, bias=False)
    third.weight = second.weight
    narrow = NarrowWeights(_places(nn.ModuleList([first, second, third])), torch.bfloat16)
    narrow.put_in()
    assert second.weight is third.weight
    given = torch.ones(2, 4, dtype=torch.bfloat16)
    third(second(first(given))).sum().backward()
    narrow.take_out()
    narrow.hand_over()
    assert first.weight.grad is None
    assert second.weight.grad is not None
    assert second.weight.grad is third.weight.grad
    assert second.weight.grad.abs().sum() > 0
