"""Pooling against its definitions."""

import torch

from biencoder.model.pooling import cls_token, last_token, mean_tokens

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


def test_the_gradient_of_the_mean() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    mean_tokens(hidden, STARTS).sum().backward()
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad[:, 0], torch.tensor([1 / 3] * 3 + [1.0] + [0.2] * 5))
