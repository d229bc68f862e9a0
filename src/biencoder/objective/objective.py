"""The objective: embeddings and labels to named losses. Plain, cached and distributed training all call this one.

Shapes: B queries, P passages (of this rank, or of all of them), Q queries of the batch, of which the B are some,
G passages in the largest group, D dimensions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from biencoder.config.choices import KL
from biencoder.model.pooling import truncate
from biencoder.objective.losses import DISTILLATIONS, contrastive


@dataclass(frozen=True)
class Labels:
    """What is what among the passages.

    Attributes:
        groups: ``[B, G]`` int64, the columns of each query's own passages, its positive first; -1 where a group is
            shorter.
        known_positive: ``[B, P]`` bool, passages known to answer the query: no negatives. None for no such knowledge.
        teacher: ``[B, G]`` float32 scores of a teacher; NaN where it gave none. None for no teacher.
        own: ``[B]`` int64, the place of each query among the Q. None: the B are all of them.
        answered: ``[B, Q]`` bool, queries that the positive of each of the B is known to answer. None for no such
            knowledge.
    """

    groups: Tensor
    known_positive: Tensor | None = None
    teacher: Tensor | None = None
    own: Tensor | None = None
    answered: Tensor | None = None

    def rows(self, part: slice) -> "Labels":
        """The labels of some of the queries."""
        return self._each(lambda values: values[part])

    def to(self, device: torch.device) -> "Labels":
        """The same labels on ``device``."""
        return self._each(lambda values: values.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Labels":
        values = (getattr(self, field.name) for field in fields(self))
        return Labels(*(None if value is None else change(value) for value in values))  # type: ignore[arg-type]

    @staticmethod
    def of_groups(queries: int, group_size: int, device: torch.device) -> "Labels":
        """Labels of equal groups: the passages of query i are i·G … i·G+G-1."""
        columns = torch.arange(queries * group_size, device=device)
        return Labels(columns.view(queries, group_size))


@dataclass(frozen=True)
class Losses:
    """One value a query, so that any mean over any set of ranks or blocks can be taken of them.

    Attributes:
        contrastive: ``[B]`` nats.
        distillation: ``[B]`` nats, or None without a teacher.
        total: ``[B]``, their weighted sum: what is differentiated.
        scores: ``[B, P]`` with in-batch negatives, else ``[B, G]``: similarity over temperature, before masking.
    """

    contrastive: Tensor
    distillation: Tensor | None
    total: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Objective:
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

    def __call__(
        self, queries_BD: Tensor, passages_PD: Tensor, labels: Labels, everyone_QD: Tensor | None = None
    ) -> Losses:
        """Losses of queries over passages, in float32 also under autocast.

        Under autocast a bf16 similarity near 0.8 would move in steps of 0.004: at temperature 0.02, 0.2 of a logit.

        Args:
            queries_BD: ``[B, D]``.
            passages_PD: ``[P, D]``.
            labels: of these queries over these passages.
            everyone_QD: ``[Q, D]``, all queries of the batch, for a loss that goes both ways. None: the B are all.
        """
        with torch.autocast(queries_BD.device.type, enabled=False):
            queries, passages = queries_BD.float(), passages_PD.float()
            everyone = queries if everyone_QD is None else everyone_QD.float()
            if not self.dims:
                return self._losses(queries, passages, labels, everyone)
            nested = []
            for dim in self.dims:
                cut = [truncate(vectors, dim, self.normalize) for vectors in (queries, passages, everyone)]
                nested.append(self._losses(cut[0], cut[1], labels, cut[2]))
            return _mean(nested)

    def loss_of_guessing(self, labels: Labels, passages: int, queries: int) -> float:
        """The mean contrastive loss of a model to which all candidates of a query are equally likely, in nats.

        Args:
            labels: of some queries; what a guide finds besides is not in them.
            passages: of the batch, P.
            queries: of the batch, Q.
        """
        if self.in_batch_negatives:
            found = _log_candidates(_in_batch_candidates(labels), passages)
        else:
            found = _log_candidates(_group_candidates(labels), labels.groups.shape[1])
        return (found + _log_candidates(_askers(labels), queries)) / 2 if self.two_way else found

    def _losses(self, queries: Tensor, passages: Tensor, labels: Labels, everyone: Tensor) -> Losses:
        if self.in_batch_negatives:
            scores = similarity(queries, passages) / self.temperature
            target, candidate = labels.groups[:, 0], _in_batch_candidates(labels)
        else:
            scores = group_similarity(queries, passages, labels.groups) / self.temperature
            target, candidate = torch.zeros_like(labels.groups[:, 0]), _group_candidates(labels)
        contrast = contrastive(_only(candidate, scores), target)
        if self.two_way:
            contrast = (contrast + self._backwards(passages, labels, everyone)) / 2
        if labels.teacher is None:
            return Losses(contrast, None, contrast, scores)
        own = scores.gather(1, labels.groups.clamp(min=0)) if self.in_batch_negatives else scores
        present = (labels.groups >= 0) & labels.teacher.isfinite()
        distilled = DISTILLATIONS[self.distillation](own, labels.teacher, present)
        return Losses(contrast, distilled, contrast + self.distillation_weight * distilled, scores)

    def _backwards(self, passages: Tensor, labels: Labels, everyone: Tensor) -> Tensor:
        """``[B]``: the loss of finding each positive's query among all queries."""
        scores = similarity(passages[labels.groups[:, 0]], everyone) / self.temperature
        return contrastive(_only(_askers(labels), scores), _own(labels))


def similarity(queries_BD: Tensor, passages_PD: Tensor) -> Tensor:
    """Inner products of all queries with all passages: ``[B, P]``."""
    return queries_BD @ passages_PD.T


def group_similarity(queries_BD: Tensor, passages_PD: Tensor, groups_BG: Tensor) -> Tensor:
    """Inner products of each query with its own group: ``[B, G]``."""
    return torch.einsum("bd,bgd->bg", queries_BD, passages_PD[groups_BG.clamp(min=0)])


def _only(candidate: Tensor | None, scores: Tensor) -> Tensor:
    """The scores of the candidates, minus infinity for the others."""
    return scores if candidate is None else scores.masked_fill(~candidate, float("-inf"))


def _in_batch_candidates(labels: Labels) -> Tensor | None:
    """``[B, P]``: all but the known positives, and always the query's own positive."""
    if labels.known_positive is None:
        return None
    return (~labels.known_positive).scatter(1, labels.groups[:, :1], value=True)


def _group_candidates(labels: Labels) -> Tensor:
    """``[B, G]``: what the group has, without known positives, and always its own positive."""
    candidate = labels.groups >= 0
    if labels.known_positive is not None:
        candidate = candidate & ~labels.known_positive.gather(1, labels.groups.clamp(min=0))
    candidate[:, 0] = True
    return candidate


def _askers(labels: Labels) -> Tensor | None:
    """``[B, Q]``: the queries among which a positive must find its own: all but those it is known to answer."""
    if labels.answered is None:
        return None
    return (~labels.answered).scatter(1, _own(labels)[:, None], value=True)


def _own(labels: Labels) -> Tensor:
    return torch.arange(len(labels.groups), device=labels.groups.device) if labels.own is None else labels.own


def _log_candidates(candidate: Tensor | None, all_of_them: int) -> float:
    """The mean logarithm of the number of candidates of a query."""
    return math.log(all_of_them) if candidate is None else float(candidate.sum(dim=1).log().mean())


def _mean(nested: list[Losses]) -> Losses:
    """Of losses at several dimensions; the scores are those of the first."""
    distilled = [losses.distillation for losses in nested if losses.distillation is not None]
    return Losses(
        contrastive=torch.stack([losses.contrastive for losses in nested]).mean(dim=0),
        distillation=torch.stack(distilled).mean(dim=0) if distilled else None,
        total=torch.stack([losses.total for losses in nested]).mean(dim=0),
        scores=nested[0].scores,
    )
