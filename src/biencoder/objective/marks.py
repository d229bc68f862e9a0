"""Marked cells of a table of queries by candidates, of which nearly all are not marked.

Shapes: B rows, C columns, M marked cells.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biencoder.device.choice import facts


@dataclass(frozen=True, eq=False)
class Marks:
    """Which cells are marked, row by row, in memory that grows with their number and not with B x C.

    Attributes:
        starts: ``[B + 1]`` int64, where each row's cells begin among the M, and the end of the last.
        rows: ``[M]`` int64, ascending.
        columns: ``[M]`` int64.
        width: C.
    """

    starts: NDArray[np.int64]
    rows: Tensor
    columns: Tensor
    width: int

    @staticmethod
    def of(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> "Marks":
        """Marks at the given cells of a table of B x C, which may be in any order."""
        order = np.argsort(rows, kind="stable")
        starts = np.searchsorted(rows[order], np.arange(shape[0] + 1))
        return Marks(starts, torch.from_numpy(rows[order]), torch.from_numpy(columns[order]), shape[1])

    def dense(self, part: slice) -> Tensor:
        """Some of the rows in full: bool ``[b, C]``, on the device of the marks."""
        first, last, _ = part.indices(len(self.starts) - 1)
        mask = torch.zeros(last - first, self.width, dtype=torch.bool, device=self.rows.device)
        cells = slice(int(self.starts[first]), int(self.starts[last]))
        mask[self.rows[cells] - first, self.columns[cells]] = True
        return mask

    def to(self, device: torch.device) -> "Marks":
        """The same marks on ``device``; ``starts`` stays where Python reads it."""
        receive = facts(device).receive
        return Marks(self.starts, receive(self.rows, device), receive(self.columns, device), self.width)

    def __len__(self) -> int:
        return len(self.rows)
