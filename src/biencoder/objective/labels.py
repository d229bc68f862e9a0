"""Labels: which passages answer which queries, as far as a batch knows.

Shapes: B queries, P passages (of this rank, or of all of them), Q queries of the batch, of which the B are some, G
passages in the largest group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from biencoder.device.choice import facts
from biencoder.objective.marks import Marks


@dataclass(frozen=True)
class Labels:
    """Which passages and queries of a batch belong together.

    Attributes:
        groups: ``[B, G]`` int64, the columns of each query's own passages, its positive first; -1 where a group is
            shorter.
        known_positives: ``[B, P]`` bool, passages that are known to answer the query and so are no negatives. None
            when nothing is known.
        teacher: ``[B, G]`` float32 scores of a teacher; NaN where it gave no score. None without a teacher.
        query_numbers: ``[B]`` int64, the place of each query among all Q. None when the B are all of them.
        known_queries: ``[B, Q]`` bool, queries that the positive of each of the B is known to answer. None when nothing
            is known.
    """

    groups: Tensor
    known_positives: Tensor | None = None
    teacher: Tensor | None = None
    query_numbers: Tensor | None = None
    known_queries: Tensor | None = None

    @staticmethod
    def of_groups(queries: int, group_size: int, device: torch.device) -> "Labels":
        """Labels of equal groups: the passages of query i are i·G … i·G+G-1."""
        columns = torch.arange(queries * group_size, device=device)
        return Labels(columns.view(queries, group_size))

    @property
    def own_numbers(self) -> Tensor:
        """The place of each query among all Q: ``[B]`` int64."""
        if self.query_numbers is not None:
            return self.query_numbers
        return torch.arange(len(self.groups), device=self.groups.device)


@dataclass(frozen=True)
class BatchLabels:
    """The labels of a whole batch, in memory that grows with its texts; :meth:`rows` has those of a part in full.

    Attributes:
        groups: as in :class:`Labels`.
        query_numbers: ``[B]`` int64, the place of each query among all Q.
        known_positives: passages that are known to answer a query, beside its own positive; None for none.
        teacher: as in :class:`Labels`.
        known_queries: queries that the positive of a query is known to answer, beside that query; None for none.
    """

    groups: Tensor
    query_numbers: Tensor
    known_positives: Marks | None = None
    teacher: Tensor | None = None
    known_queries: Marks | None = None

    def rows(self, part: slice) -> Labels:
        """The labels of some of the queries."""
        return Labels(
            groups=self.groups[part],
            known_positives=None if self.known_positives is None else self.known_positives.dense(part),
            teacher=None if self.teacher is None else self.teacher[part],
            query_numbers=self.query_numbers[part],
            known_queries=None if self.known_queries is None else self.known_queries.dense(part),
        )

    def to(self, device: torch.device) -> "BatchLabels":
        """The same labels on ``device``."""
        receive = facts(device).receive
        return BatchLabels(
            groups=receive(self.groups, device),
            query_numbers=receive(self.query_numbers, device),
            known_positives=None if self.known_positives is None else self.known_positives.to(device),
            teacher=None if self.teacher is None else receive(self.teacher, device),
            known_queries=None if self.known_queries is None else self.known_queries.to(device),
        )
