"""Losses: pure functions of scores, one value a query. They hold no model and know no ranks.

Shapes: B queries, C candidates of each, the positive among them; G passages in a query's own group.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from biencoder.config.choices import KL, MARGIN_MSE


def contrastive(scores_BC: Tensor, target_B: Tensor, excluded_BC: Tensor | None = None) -> Tensor:
    """InfoNCE: ``-log softmax(scores)[target]`` of each query (van den Oord et al. 2018, eq. 4).

    Args:
        scores_BC: ``[B, C]`` float32 similarities over temperature.
        target_B: ``[B]`` int64, the column of each query's positive.
        excluded_BC: ``[B, C]`` bool, what is no candidate; a query's positive always is one. None for nothing.

    Returns:
        ``[B]``, in nats.
    """
    return contrastive_beside(scores_BC, target_B[:, None], excluded_BC)[0]


def contrastive_beside(
    scores_BC: Tensor, groups_BG: Tensor, excluded_BC: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """InfoNCE beside the scores of each query's own passages, for a second loss over these.

    Args:
        scores_BC: as for :func:`contrastive`.
        groups_BG: ``[B, G]`` int64, the columns of the own passages, the positive's first.
        excluded_BC: as for :func:`contrastive`.

    Returns:
        ``[B]``, in nats; and ``[B, G]``, ``scores_BC`` at ``groups_BG``.
    """
    losses, own = _CrossEntropy.apply(scores_BC, groups_BG, excluded_BC)  # type: ignore[no-untyped-call]
    return losses, own


class _CrossEntropy(torch.autograd.Function):
    """PyTorch's, without the further matrices of ``[B, C]`` through which its mask and its gradients pass."""

    @staticmethod
    def forward(ctx: Any, scores_BC: Tensor, groups_BG: Tensor, excluded_BC: Tensor | None) -> tuple[Tensor, Tensor]:
        own_BG, target_B1 = scores_BC.gather(1, groups_BG), groups_BG[:, :1]
        if excluded_BC is not None:
            scores_BC = scores_BC.masked_fill(excluded_BC, float("-inf"))
            scores_BC.scatter_(1, target_B1, own_BG[:, :1])
        logs_BC = log_softmax(scores_BC, dim=1)
        ctx.save_for_backward(logs_BC, groups_BG)
        return -logs_BC.gather(1, target_B1).squeeze(1), own_BG

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logs_BC, groups_BG = ctx.saved_tensors
        loss_B, own_BG = gradients
        scores_BC = logs_BC.exp().mul_(loss_B[:, None])  # what is excluded has a softmax of 0
        scores_BC.scatter_add_(1, groups_BG[:, :1], -loss_B[:, None])
        return scores_BC.scatter_add_(1, groups_BG, own_BG), None, None


def distillation(scores_BG: Tensor, teacher_BG: Tensor, present_BG: Tensor) -> Tensor:
    """Cross-entropy of the student's distribution over a group against the teacher's (Hinton et al. 2015, eq. 1).

    Up to the teacher's own entropy, which has no gradient, this is the Kullback-Leibler divergence.

    Args:
        scores_BG: ``[B, G]`` float32, the student's similarities over temperature.
        teacher_BG: ``[B, G]`` the teacher's scores, as logits.
        present_BG: ``[B, G]`` bool, False where the group has no such passage or the teacher gave no score.

    Returns:
        ``[B]``, in nats; 0 for a query with fewer than two present passages, over which there is nothing to learn.
    """
    absent = ~present_BG
    lowest = torch.finfo(scores_BG.dtype).min  # not -inf: a group without any present passage would turn into NaN
    student = log_softmax(scores_BG.masked_fill(absent, lowest), dim=-1)
    teacher = softmax(teacher_BG.to(scores_BG.dtype).masked_fill(absent, lowest), dim=-1)
    loss = -(teacher * student).masked_fill(absent, 0.0).sum(dim=-1)
    return loss.masked_fill(present_BG.sum(dim=-1) < 2, 0.0)


def margin_mse(scores_BG: Tensor, teacher_BG: Tensor, present_BG: Tensor) -> Tensor:
    """Squared error of the student's margins against the teacher's (Hofstätter et al. 2020, section 3.1).

    The margin is the positive's score less a negative's; the mean is over a query's negatives.

    Args:
        scores_BG: ``[B, G]`` float32, the student's similarities over temperature, the positive's first.
        teacher_BG: ``[B, G]`` the teacher's scores, on the scale of the student's.
        present_BG: ``[B, G]`` bool, False where the group has no such passage or the teacher gave no score.

    Returns:
        ``[B]``, in squared units of the scores; 0 for a query without a margin that both know.
    """
    known = present_BG[:, 1:] & present_BG[:, :1]
    teacher = teacher_BG.to(scores_BG.dtype).masked_fill(~present_BG, 0.0)
    error = (scores_BG[:, :1] - scores_BG[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
    return error.square().masked_fill(~known, 0.0).sum(dim=-1) / known.sum(dim=-1).clamp(min=1)


# Losses against a teacher, by the name that is typed.
DISTILLATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    KL: distillation,
    MARGIN_MSE: margin_mse,
}
