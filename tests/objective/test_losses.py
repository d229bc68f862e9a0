"""Losses against loops over their formulas in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from biencoder.objective.losses import contrastive, contrastive_beside, distillation, margin_mse

INF = float("inf")


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_contrastive_is_minus_the_log_of_the_softmax(scale: float) -> None:
    scores, target = draw(5, 7, scale=scale), torch.tensor([0, 3, 6, 1, 2])
    scores[0, 4] = scores[3, 0] = -INF
    for i, loss in enumerate(contrastive(scores, target).tolist()):
        highest = max(scores[i].tolist())
        total = sum(math.exp(score - highest) for score in scores[i].tolist())
        assert loss == pytest.approx(math.log(total) + highest - float(scores[i, target[i]]), rel=1e-12, abs=1e-12)


def test_scores_beside_the_contrastive_loss_share_its_gradient() -> None:
    scores, groups = draw(4, 7), torch.tensor([[0, 1], [3, 2], [6, 6], [1, 5]])
    excluded = draw(4, 7, seed=1) > 0.5
    weights = draw(4, 2, seed=2)
    plain, ours = scores.clone().requires_grad_(), scores.requires_grad_()
    masked = plain.masked_fill(excluded.scatter(1, groups[:, :1], value=False), -INF)
    wanted, own = cross_entropy(masked, groups[:, 0], reduction="none"), plain.gather(1, groups)
    losses, beside = contrastive_beside(ours, groups, excluded)
    torch.testing.assert_close(losses, wanted)
    assert torch.equal(beside, own)
    for found, of_group in ((wanted, own), (losses, beside)):
        (found.square().sum() + (weights * of_group.square()).sum()).backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, plain.grad)


def test_contrastive_at_the_lowest_temperatures_stays_finite() -> None:
    scores = torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 1.0]]) / 1e-3
    scores.requires_grad_()
    loss = contrastive(scores, torch.tensor([0, 0]))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.0, 2000 + math.log(2)])
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_distillation_is_the_cross_entropy_of_the_two_distributions() -> None:
    scores, teacher = draw(4, 3, scale=20), draw(4, 3, seed=1, scale=3)
    present = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    teacher[~present] = float("nan")
    scores.requires_grad_()
    losses = distillation(scores, teacher, present)
    for i in range(2):
        kept = [j for j in range(3) if present[i, j]]
        wanted = sum(math.exp(float(teacher[i, j])) for j in kept)
        student = scores[i].tolist()
        given = math.log(sum(math.exp(student[j]) for j in kept))
        loss = -sum(math.exp(float(teacher[i, j])) / wanted * (student[j] - given) for j in kept)
        assert losses[i].item() == pytest.approx(loss, rel=1e-10)
    assert losses[2:].tolist() == [0.0, 0.0]  # one passage, or none: nothing to compare
    losses.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert not scores.grad[~present].any()
    assert not scores.grad[2:].any()


def test_distillation_has_no_gradient_where_the_student_is_the_teacher() -> None:
    teacher = draw(4, 3)
    scores = (teacher + 5).requires_grad_()  # a shift changes no distribution
    distillation(scores, teacher, torch.ones(4, 3, dtype=torch.bool)).sum().backward()
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-12


def test_margin_mse_is_the_mean_squared_error_of_the_margins() -> None:
    scores, teacher = draw(4, 3, scale=20), draw(4, 3, seed=1, scale=3)
    present = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 1]]).bool()
    teacher[~present] = float("nan")
    scores.requires_grad_()
    losses = margin_mse(scores, teacher, present)
    for i, negatives in ((0, (1, 2)), (1, (1,))):
        errors = [((scores[i, 0] - scores[i, j]) - (teacher[i, 0] - teacher[i, j])).item() for j in negatives]
        assert losses[i].item() == pytest.approx(sum(e * e for e in errors) / len(errors), rel=1e-12)
    assert losses[2:].tolist() == [0.0, 0.0]  # no negative, or no score of the positive: no margin
    losses.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert not scores.grad[1, 2]
    assert not scores.grad[2:].any()


def test_margin_mse_asks_for_margins_alone() -> None:
    teacher = draw(4, 3)
    shifted = teacher + torch.arange(4.0)[:, None]
    assert margin_mse(shifted, teacher, torch.ones(4, 3).bool()).abs().max() < 1e-12
