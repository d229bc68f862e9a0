"""Losses: pure functions of scores, one value a query. They hold no model and know no ranks.

Shapes: B queries, C candidates of each, the positive among them; G passages in a query's own group.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from biencoder.config.choices import KL, MARGIN_MSE


def contrastive(scores_BC: Tensor, target_B: Tensor) -> Tensor:
    """InfoNCE: ``-log softmax(scores)[target]`` of each query (van den Oord et al. 2018, eq. 4).

    Args:
        scores_BC: ``[B, C]`` float32 similarities over temperature; ``-inf`` for what is no candidate.
        target_B: ``[B]`` int64, the column of each query's positive.

    Returns:
        ``[B]``, in nats.
    """
    losses: Tensor = _CrossEntropy.apply(scores_BC, target_B)  # type: ignore[no-untyped-call]
    return losses


class _CrossEntropy(torch.autograd.Function):
    """PyTorch's, without the two further matrices of ``[B, C]`` that its gradient passes through."""

    @staticmethod
    def forward(ctx: Any, scores_BC: Tensor, target_B: Tensor) -> Tensor:
        logs_BC = log_softmax(scores_BC, dim=1)
        ctx.save_for_backward(logs_BC, target_B)
        return -logs_BC.gather(1, target_B[:, None]).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logs_BC, target_B = ctx.saved_tensors
        loss_B1 = gradients[0][:, None]
        scores_BC = logs_BC.exp().mul_(loss_B1)
        return scores_BC.scatter_add_(1, target_B[:, None], -loss_B1), None


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
