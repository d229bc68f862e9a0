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
from biencoder.objective.losses import DISTILLATIONS, contrastive
from biencoder.objective.objective import Losses


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
class ContrastiveObjective:
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

    def __call__(self, queries: Kind, passages: Kind, labels: Labels, all_queries: Kind | None = None) -> Losses:
        """Losses of queries over passages, see :class:`~biencoder.objective.objective.Objective`.

        They are computed in float32. Under autocast a bf16 similarity near 0.8 would move in steps of 0.004: at
        temperature 0.02, that is 0.2 of a logit.
        """
        with torch.autocast(queries.device.type, enabled=False):
            sides = tuple(
                side.in_float32() for side in (queries, passages, queries if all_queries is None else all_queries)
            )
            if not self.dims:
                return self._losses(sides, labels)
            cut = [tuple(side.cut(dim, normalize=self.normalize) for side in sides) for dim in self.dims]
            return _mean([self._losses(sides_of_dim, labels) for sides_of_dim in cut])

    def loss_of_guessing(self, labels: Labels, passages: int, queries: int) -> float:
        """The mean contrastive loss of a model to which all candidates of a query are equally likely, in nats.

        Args:
            labels: of some queries, without what a guide finds.
            passages: of the batch, P.
            queries: of the batch, Q.
        """
        if self.in_batch_negatives:
            found = _log_candidates(_in_batch_candidates(labels), passages)
        else:
            found = _log_candidates(_group_candidates(labels), labels.groups.shape[1])
        return (found + _log_candidates(_query_candidates(labels), queries)) / 2 if self.two_way else found

    def _losses(self, sides: tuple[Kind, ...], labels: Labels) -> Losses:
        return self.losses_of(self.scores_of(sides, labels), labels)

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
        if self.in_batch_negatives:
            target, candidate = labels.groups[:, 0], _in_batch_candidates(labels)
        else:
            target, candidate = torch.zeros_like(labels.groups[:, 0]), _group_candidates(labels)
        contrast = contrastive(_only(candidate, scores.forwards), target)
        if scores.backwards is not None:
            back = contrastive(_only(_query_candidates(labels), scores.backwards), labels.own_numbers)
            contrast = (contrast + back) / 2
        if labels.teacher is None:
            return Losses(contrast, None, contrast, scores.forwards)
        own = scores.forwards
        if self.in_batch_negatives:
            own = own.gather(1, labels.groups.clamp(min=0))
        present = (labels.groups >= 0) & labels.teacher.isfinite()
        distilled = DISTILLATIONS[self.distillation](own, labels.teacher, present)
        return Losses(contrast, distilled, contrast + self.distillation_weight * distilled, scores.forwards)

    def candidates_of(self, labels: Labels, scores: Tensor) -> Tensor:
        """Which passages each query can be told from: bool, of the shape of the scores."""
        candidate = _in_batch_candidates(labels) if self.in_batch_negatives else _group_candidates(labels)
        return torch.ones_like(scores, dtype=torch.bool) if candidate is None else candidate


def _only(candidate: Tensor | None, scores: Tensor) -> Tensor:
    """The scores of the candidates, minus infinity for the others."""
    return scores if candidate is None else scores.masked_fill(~candidate, float("-inf"))


def _in_batch_candidates(labels: Labels) -> Tensor | None:
    """``[B, P]``: all but the known positives, and always the query's own positive."""
    if labels.known_positives is None:
        return None
    return (~labels.known_positives).scatter(1, labels.groups[:, :1], value=True)


def _group_candidates(labels: Labels) -> Tensor:
    """``[B, G]``: what the group has, without known positives, and always its own positive."""
    candidate = labels.groups >= 0
    if labels.known_positives is not None:
        candidate = candidate & ~labels.known_positives.gather(1, labels.groups.clamp(min=0))
    candidate[:, 0] = True
    return candidate


def _query_candidates(labels: Labels) -> Tensor | None:
    """``[B, Q]``: the queries among which a positive must find its own: all but the others that it answers."""
    if labels.known_queries is None:
        return None
    return (~labels.known_queries).scatter(1, labels.own_numbers[:, None], value=True)


def _log_candidates(candidate: Tensor | None, all_of_them: int) -> float:
    """The mean logarithm of the number of candidates of a query."""
    return math.log(all_of_them) if candidate is None else float(candidate.sum(dim=1).log().mean())


def _mean(nested: list[Losses]) -> Losses:
    """The mean of the losses at several dimensions, with the scores of the first."""
    distilled = [losses.distillation for losses in nested if losses.distillation is not None]
    return Losses(
        contrastive=torch.stack([losses.contrastive for losses in nested]).mean(dim=0),
        distillation=torch.stack(distilled).mean(dim=0) if distilled else None,
        total=torch.stack([losses.total for losses in nested]).mean(dim=0),
        scores=nested[0].scores,
    )
