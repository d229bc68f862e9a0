"""Labels: which passages answer which queries, as far as a batch knows.

Shapes: B queries, P passages (of this rank, or of all of them), Q queries of the batch, of which the B are some, G
passages in the largest group.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from biencoder.device.choice import facts


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

    def rows(self, part: slice) -> "Labels":
        """The labels of some of the queries."""
        return self._each(lambda values: values[part])

    def to(self, device: torch.device) -> "Labels":
        """The same labels on ``device``."""
        return self._each(lambda values: facts(device).receive(values, device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Labels":
        values = (getattr(self, field.name) for field in fields(self))
        return Labels(*(None if value is None else change(value) for value in values))  # type: ignore[arg-type]

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
