"""What an objective is: representations and labels to named losses. Plain, cached and distributed training all call it.

Shapes: B queries, P passages (of this rank, or of all of them), Q queries of the batch, of which the B are some, G
passages in the largest group.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

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


class Objective(Protocol):
    """What training minimises. A new one is a small file of its own."""

    @property
    def two_way(self) -> bool:
        """Whether it needs all queries of the batch beside the passages."""

    def __call__(self, queries: Any, passages: Any, labels: Labels, all_queries: Any = None, /) -> Losses:
        """Losses of B queries over P passages, in float32 also under autocast.

        Args:
            queries: a :class:`~biencoder.model.representations.representation.Representation` of the B queries.
            passages: one of the P passages.
            labels: of these queries over these passages.
            all_queries: one of all Q queries of the batch, for a loss that goes both ways. None: the B are all.
        """
