"""The contrastive objective: in-batch or group negatives, both ways, distillation, nested dimensions.

Shapes: B queries, P passages (of this rank, or of all of them), Q queries of the batch, of which the B are some, G
passages in the largest group.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from biencoder.config.choices import KL
from biencoder.model.representations.representation import Kind
from biencoder.objective.labels import Labels
from biencoder.objective.losses import DISTILLATIONS, contrastive, contrastive_beside
from biencoder.objective.objective import Losses, Objective


@dataclass(frozen=True)
class Scores:
    """Similarities over temperature.

    Attributes:
        forwards: of queries to their candidates: ``[B, P]`` with in-batch negatives, else ``[B, G]``.
        backwards: ``[B, Q]``, of each query's positive to all queries; None if that is not asked.
    """

    forwards: Tensor
    backwards: Tensor | None


@dataclass(frozen=True)
class ContrastiveObjective(Objective):
    """Contrastive loss over in-batch or group negatives, plus distillation where there is a teacher.

    Attributes:
        temperature: similarities are divided by it.
        in_batch_negatives: every passage of the batch is a candidate for every query; else its own group's only.
        distillation_weight: factor on the distillation loss.
        distillation: its name in :data:`~biencoder.objective.losses.DISTILLATIONS`.
        two_way: the mean of finding the passage among passages and the query among queries (Radford et al. 2021,
            figure 3); needs in-batch negatives.
        dims: the mean of the losses of vectors cut to each of these dimensions (Kusupati et al. 2022, eq. 1, with
            equal weights); empty for all dimensions alone.
        normalize: vectors have length 1, so that those cut short are scaled to it again.
    """

    temperature: float = 0.05
    in_batch_negatives: bool = True
    distillation_weight: float = 1.0
    distillation: str = KL
    two_way: bool = False
    dims: tuple[int, ...] = ()
    normalize: bool = True

    def loss_of_guessing(self, labels: Labels, passages: int, queries: int) -> float:
        """The mean contrastive loss of a model to which all candidates of a query are equally likely, in nats.

        Args:
            labels: of some queries, without what a guide finds.
            passages: of the batch, P.
            queries: of the batch, Q.
        """
        candidates = passages if self.in_batch_negatives else labels.groups.shape[1]
        found = _log_candidates(candidates, self._excluded(labels), self._own_columns(labels)[:, 0])
        if not self.two_way:
            return found
        return (found + _log_candidates(queries, labels.known_queries, labels.own_numbers)) / 2

    def losses(self, queries: Kind, passages: Kind, all_queries: Kind, labels: Labels) -> Losses:
        """Losses of B queries over P passages, see :class:`~biencoder.objective.objective.Objective`."""
        return self.losses_of(self.scores_of((queries, passages, all_queries), labels), labels)

    def scores_of(self, sides: tuple[Kind, ...], labels: Labels) -> Scores:
        """The similarities that the losses compare, over temperature.

        Args:
            sides: queries, passages, and all queries of the batch, in float32.
            labels: of the queries over the passages.
        """
        queries, passages, all_queries = sides
        if self.in_batch_negatives:
            forwards = queries.scores(passages)
        else:
            forwards = queries.group_scores(passages, labels.groups.clamp(min=0))
        if not self.two_way:
            return Scores(forwards / self.temperature, None)
        backwards = all_queries.scores(passages[labels.groups[:, 0]]).T
        return Scores(forwards / self.temperature, backwards / self.temperature)

    def losses_of(self, scores: Scores, labels: Labels) -> Losses:
        """The losses of queries by the similarities of their candidates."""
        own = self._own_columns(labels)
        contrast, own_scores = contrastive_beside(scores.forwards, own, self._excluded(labels))
        if scores.backwards is not None:
            contrast = (contrast + contrastive(scores.backwards, labels.own_numbers, labels.known_queries)) / 2
        if labels.teacher is None:
            return Losses(contrast, None, contrast, scores.forwards)
        present = (labels.groups >= 0) & labels.teacher.isfinite()
        distilled = DISTILLATIONS[self.distillation](own_scores, labels.teacher, present)
        return Losses(contrast, distilled, contrast + self.distillation_weight * distilled, scores.forwards)

    def candidates_of(self, labels: Labels, scores: Tensor) -> Tensor:
        """Which passages each query can be told from: bool, of the shape of the scores."""
        excluded = self._excluded(labels)
        if excluded is None:
            return torch.ones_like(scores, dtype=torch.bool)
        return (~excluded).scatter(1, self._own_columns(labels)[:, :1], value=True)

    def _own_columns(self, labels: Labels) -> Tensor:
        """``[B, G]``: where each query's own passages are among its candidates, its positive first."""
        groups = labels.groups
        return groups.clamp(min=0) if self.in_batch_negatives else _places(groups)

    def _excluded(self, labels: Labels) -> Tensor | None:
        """What is no candidate of a query, if it is not its positive: the known positives, and no passage at all."""
        if self.in_batch_negatives:
            return labels.known_positives
        absent = labels.groups < 0
        if labels.known_positives is None:
            return absent
        return absent | labels.known_positives.gather(1, labels.groups.clamp(min=0))


def _places(groups: Tensor) -> Tensor:
    """``[B, G]``: the numbers 0 to G - 1 for each query."""
    return torch.arange(groups.shape[1], device=groups.device).expand_as(groups)


def _log_candidates(all_of_them: int, excluded: Tensor | None, positive: Tensor) -> float:
    """The mean logarithm of the number of candidates of a query, whose positive always is one."""
    if excluded is None:
        return math.log(all_of_them)
    others = excluded.sum(dim=1) - excluded.gather(1, positive[:, None]).squeeze(1).long()
    return float((all_of_them - others).log().mean())
