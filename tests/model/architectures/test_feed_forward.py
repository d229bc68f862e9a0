"""The feed-forward network that keeps less computes the same, forward and backward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import bytes_kept, gradient_errors, tiny_model, vectors_and_gradients
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from biencoder import Encoder
from biencoder.device.choice import facts
from biencoder.model.architectures import feed_forward
from biencoder.model.architectures.bert import BERT_LIKE
from biencoder.model.packing import pack

BATCH = pack([[5 + place for place in range(length)] for length in (40, 17, 17, 3)])


def plain(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return linear(gelu(hidden), weight, bias)


def load(folder: Path, **changes: Any) -> Encoder:
    encoder = Encoder.load(tiny_model(folder, **changes), pooling="mean", normalize=False)
    encoder.train()
    return encoder


@pytest.mark.parametrize("kind", sorted(BERT_LIKE))
def test_vectors_and_gradients_are_those_of_plain_autograd(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(tmp_path, kind=kind)
    vectors, got = vectors_and_gradients(encoder, BATCH)
    monkeypatch.setattr(feed_forward._GeluLinear, "apply", plain)
    expected, want = vectors_and_gradients(encoder, BATCH)
    assert torch.equal(vectors, expected)
    assert max(gradient_errors(got, want)) < 1e-6


def test_bf16_is_as_near_to_float32_as_plain_autograd_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(tmp_path)
    exact = vectors_and_gradients(encoder, BATCH)[1]
    encoder.precision = "bf16"
    got = gradient_errors(vectors_and_gradients(encoder, BATCH)[1], exact)
    monkeypatch.setattr(feed_forward._GeluLinear, "apply", plain)
    want = gradient_errors(vectors_and_gradients(encoder, BATCH)[1], exact)
    assert want[1] > 1e-4
    assert got[1] < 1.05 * want[1]


def test_the_activation_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(tmp_path)
    kept = bytes_kept(lambda: encoder.embed(BATCH))
    monkeypatch.setattr(feed_forward._GeluLinear, "apply", plain)
    rows, intermediate, layers = facts(torch.device("cpu")).rows_of_products(BATCH.input_ids.numel()), 48, 2
    assert bytes_kept(lambda: encoder.embed(BATCH)) - kept == 4 * rows * intermediate * layers


def test_frozen_weights_get_no_gradient(tmp_path: Path) -> None:
    encoder = load(tmp_path)
    output = encoder.backbone.encoder.layer[0].output.dense
    output.weight.requires_grad_(False)
    vectors_and_gradients(encoder, BATCH)
    assert output.weight.grad is None
    assert output.bias.grad.any()


def test_another_activation_and_a_wrapped_projection_are_left_to_their_author(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrapped(nn.Linear):
        pass

    monkeypatch.setattr(feed_forward._GeluLinear, "apply", None)  # would fail if it were called
    load(tmp_path / "relu", hidden_act="relu").embed(BATCH)
    encoder = load(tmp_path / "gelu")
    for layer in encoder.backbone.encoder.layer:
        layer.output.dense.__class__ = Wrapped
    encoder.embed(BATCH)
