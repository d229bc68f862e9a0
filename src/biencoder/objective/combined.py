"""The objective of several heads: the loss of each, that of their combination, and what the heads learn from it.

Shapes: B queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from biencoder.model.representations.combined import Combined
from biencoder.objective.contrastive import ContrastiveObjective, Scores
from biencoder.objective.labels import Labels
from biencoder.objective.losses import distillation
from biencoder.objective.objective import Losses


@dataclass(frozen=True)
class CombinedObjective(ContrastiveObjective):
    """The losses of BGE-M3's heads (Chen et al. 2024, arXiv 2402.03216, section 3.2).

    Each head has the contrastive loss, and so has the weighted sum of their similarities. If asked, each head also
    learns the distribution over the candidates that this sum gives, which is their teacher. The loss is the mean of
    the two.

    Attributes:
        loss_weights: of each head's loss; the loss of the combination has the weight 1, and the weights are scaled to
            the sum 1.
        self_distillation: whether the heads learn from their combination.
    """

    loss_weights: tuple[float, ...] = ()
    self_distillation: bool = True

    def losses(self, queries: Combined, passages: Combined, all_queries: Combined, labels: Labels) -> Losses:  # type: ignore[override]
        """Losses of B queries over P passages, see :class:`~biencoder.objective.objective.Objective`."""
        sides = (queries.parts, passages.parts, all_queries.parts)
        of_heads = [self.scores_of(each, labels) for each in zip(*sides, strict=True)]
        whole = _summed(queries, of_heads)
        found = [self.losses_of(scores, labels) for scores in (*of_heads, whole)]
        weights = (*self.loss_weights, 1.0)
        total = _mean([losses.total for losses in found], weights)
        if self.self_distillation:
            learnt = [self._from_combination(scores, whole, labels) for scores in of_heads]
            total = (total + _mean(learnt, self.loss_weights)) / 2
        distilled = [losses.distillation for losses in found if losses.distillation is not None]
        return Losses(
            contrastive=_mean([losses.contrastive for losses in found], weights),
            distillation=_mean(distilled, weights) if distilled else None,
            total=total,
            scores=whole.forwards,
        )

    def _from_combination(self, scores: Scores, whole: Scores, labels: Labels) -> Tensor:
        """``[B]``: the cross-entropy of a head's distribution over the candidates against the combination's."""
        candidates = self.candidates_of(labels, scores.forwards)
        return distillation(scores.forwards, whole.forwards.detach(), candidates)


def _summed(like: Combined, of_heads: list[Scores]) -> Scores:
    """The weighted sum of the heads' similarities."""
    backwards = [scores.backwards for scores in of_heads if scores.backwards is not None]
    return Scores(like.summed([scores.forwards for scores in of_heads]), like.summed(backwards) if backwards else None)


def _mean(losses: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    """``[B]``: the weighted mean of losses ``[B]``."""
    scaled = [weight / sum(weights) * loss for weight, loss in zip(weights, losses, strict=True)]
    return torch.stack(scaled).sum(dim=0)
