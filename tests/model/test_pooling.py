"""Pooling against its definitions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from biencoder.errors import UserError
from biencoder.model.encoder import Encoder
from biencoder.model.pooling import (
    POOLINGS,
    cls_token,
    last_of_each,
    last_token,
    mean_by_bags,
    mean_by_segments,
    mean_tokens,
)

STARTS = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
HIDDEN = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))


def test_first_last_and_mean() -> None:
    assert torch.equal(cls_token(HIDDEN, STARTS), HIDDEN[[0, 3, 4]])
    assert torch.equal(last_token(HIDDEN, STARTS), HIDDEN[[2, 3, 8]])
    want = torch.stack([HIDDEN[0:3].mean(0), HIDDEN[3], HIDDEN[4:9].mean(0)])
    torch.testing.assert_close(mean_tokens(HIDDEN, STARTS), want)


def test_the_mean_is_taken_in_float32() -> None:
    hidden = torch.full((4096, 1), 1.01, dtype=torch.bfloat16)
    mean = mean_tokens(hidden, torch.tensor([0, 4096], dtype=torch.int32))
    assert mean.dtype == torch.float32
    assert abs(mean.item() - hidden[0].float().item()) < 1e-4


@pytest.mark.parametrize("mean", [mean_by_bags, mean_by_segments])  # on a CPU and on a GPU
def test_the_mean_and_its_gradient(mean: Callable[[Tensor, Tensor], Tensor]) -> None:
    hidden = HIDDEN.clone().requires_grad_()
    means = mean(hidden, STARTS)
    torch.testing.assert_close(means, mean_tokens(HIDDEN, STARTS))
    means.sum().backward()
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad[:, 0], torch.tensor([1 / 3] * 3 + [1.0] + [0.2] * 5))


def first_and_last(hidden_TD: Tensor, starts: Tensor) -> Tensor:
    return cls_token(hidden_TD, starts) + hidden_TD[last_of_each(starts)]


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_pooling_of_your_own(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POOLINGS, "toy", first_and_last)
    folder = tiny_model(tmp_path / "model", kind)
    texts = ["word1 word2 word3", "word4", "word5 word6"]
    toy, cls, last = (
        Encoder.load(folder, pooling=pooling, normalize=False).encode(texts) for pooling in ("toy", "cls", "last")
    )
    np.testing.assert_allclose(toy, cls + last, rtol=1e-5, atol=1e-5)


def test_a_pooling_that_other_tools_do_not_know_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POOLINGS, "toy", first_and_last)
    encoder = Encoder.load(tiny_model(tmp_path / "model"), pooling="toy")
    with pytest.raises(UserError, match="sentence-transformers has no toy pooling to load the model with"):
        encoder.save(tmp_path / "saved")
