"""The objective: embeddings and labels to named losses. Plain, cached and distributed training all call this one.

Shapes: B queries, P passages (of this rank, or of all of them), G passages in the largest group, D dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from biencoder.training.losses import contrastive, distillation


@dataclass(frozen=True)
class Labels:
    """What is what among the passages.

    Attributes:
        groups: ``[B, G]`` int64, the columns of each query's own passages, its positive first; -1 where a group is
            shorter.
        known_positive: ``[B, P]`` bool, passages known to answer the query: no negatives. None for no such knowledge.
        teacher: ``[B, G]`` float32 scores of a teacher; NaN where it gave none. None for no teacher.
    """

    groups: Tensor
    known_positive: Tensor | None = None
    teacher: Tensor | None = None

    def rows(self, part: slice) -> "Labels":
        """The labels of some of the queries."""
        return Labels(
            self.groups[part],
            None if self.known_positive is None else self.known_positive[part],
            None if self.teacher is None else self.teacher[part],
        )

    def to(self, device: torch.device) -> "Labels":
        """The same labels on ``device``."""
        return Labels(
            self.groups.to(device),
            None if self.known_positive is None else self.known_positive.to(device),
            None if self.teacher is None else self.teacher.to(device),
        )

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
    """

    temperature: float = 0.02
    in_batch_negatives: bool = True
    distillation_weight: float = 1.0

    def __call__(self, queries_BD: Tensor, passages_PD: Tensor, labels: Labels) -> Losses:
        """Losses of queries over passages, in float32 also under autocast.

        Under autocast a bf16 similarity near 0.8 would move in steps of 0.004: at temperature 0.02, 0.2 of a logit.
        """
        with torch.autocast(queries_BD.device.type, enabled=False):
            queries, passages = queries_BD.float(), passages_PD.float()
            if self.in_batch_negatives:
                scores = similarity(queries, passages) / self.temperature
                target, candidate = labels.groups[:, 0], _in_batch_candidates(labels)
            else:
                scores = group_similarity(queries, passages, labels.groups) / self.temperature
                target, candidate = torch.zeros_like(labels.groups[:, 0]), _group_candidates(labels)
            masked = scores if candidate is None else scores.masked_fill(~candidate, float("-inf"))
            contrast = contrastive(masked, target)
            if labels.teacher is None:
                return Losses(contrast, None, contrast, scores)
            own = scores.gather(1, labels.groups.clamp(min=0)) if self.in_batch_negatives else scores
            present = (labels.groups >= 0) & labels.teacher.isfinite()
            distilled = distillation(own, labels.teacher, present)
            return Losses(contrast, distilled, contrast + self.distillation_weight * distilled, scores)


def similarity(queries_BD: Tensor, passages_PD: Tensor) -> Tensor:
    """Inner products of all queries with all passages: ``[B, P]``."""
    return queries_BD @ passages_PD.T


def group_similarity(queries_BD: Tensor, passages_PD: Tensor, groups_BG: Tensor) -> Tensor:
    """Inner products of each query with its own group: ``[B, G]``."""
    return torch.einsum("bd,bgd->bg", queries_BD, passages_PD[groups_BG.clamp(min=0)])


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
