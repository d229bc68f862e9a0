"""What an objective is: representations and labels to named losses. Plain, cached and distributed training all call it.

Shapes: B queries, P passages (of this rank, or of all of them), Q queries of the batch, of which the B are some, G
passages in the largest group.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from biencoder.model.representations.representation import Kind
from biencoder.objective.labels import Labels


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


class Objective(ABC):
    """What training minimises. A new one is a small file of its own.

    Attributes:
        dims: texts are compared in each of these numbers of dimensions, and the losses are the mean over them
            (Kusupati et al. 2022, eq. 1, with equal weights); empty for all dimensions alone.
        normalize: texts that are cut to fewer dimensions are scaled to length 1 again.
        two_way: it needs all queries of the batch beside the passages.
    """

    dims: tuple[int, ...] = ()
    normalize: bool = False
    two_way: bool = False

    def __call__(self, queries: Kind, passages: Kind, labels: Labels, all_queries: Kind | None = None) -> Losses:
        """Losses of B queries over P passages.

        Args:
            queries: the B queries.
            passages: the P passages.
            labels: of these queries over these passages.
            all_queries: all Q queries of the batch, for an objective that goes both ways. None: the B are all.
        """
        cuts = self.cuts(queries)
        everything = cuts if all_queries is None else self.cuts(all_queries)
        sides = zip(cuts, self.cuts(passages), everything, strict=True)
        return _mean([self.of_cut(query, passage, labels, every) for query, passage, every in sides])

    def cuts(self, texts: Kind) -> list[Kind]:
        """The texts as they are compared: once for each of :attr:`dims`.

        They are in float32. Under autocast a bf16 similarity near 0.8 would move in steps of 0.004: at temperature
        0.02, that is 0.2 of a logit.
        """
        with torch.autocast(texts.device.type, enabled=False):
            whole = texts.in_float32()
            return [whole.cut(dim, normalize=self.normalize) for dim in self.dims] or [whole]

    def of_cut(self, queries: Kind, passages: Kind, labels: Labels, all_queries: Kind | None = None) -> Losses:
        """Losses in one of :attr:`dims`, of what :meth:`cuts` made; arguments as above."""
        with torch.autocast(queries.device.type, enabled=False):
            return self.losses(queries, passages, queries if all_queries is None else all_queries, labels)

    @abstractmethod
    def losses(self, queries: Kind, passages: Kind, all_queries: Kind, labels: Labels) -> Losses:
        """Losses of B queries over P passages, all in float32 and cut."""


def _mean(nested: list[Losses]) -> Losses:
    """The mean of the losses at several dimensions, with the scores of the first."""
    if len(nested) == 1:
        return nested[0]
    distilled = [losses.distillation for losses in nested if losses.distillation is not None]
    return Losses(
        contrastive=torch.stack([losses.contrastive for losses in nested]).mean(dim=0),
        distillation=torch.stack(distilled).mean(dim=0) if distilled else None,
        total=torch.stack([losses.total for losses in nested]).mean(dim=0),
        scores=nested[0].scores,
    )
