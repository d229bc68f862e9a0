"""Adds passages of other rows to a table as hard negatives, without copying texts."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from biencoder.data.files.records import Example
from biencoder.data.table import ExampleTable, Ragged, Rows


def with_negatives(table: ExampleTable, places: NDArray[np.int64]) -> ExampleTable:
    """The same rows, each with its own hard negatives and then those mined for it.

    Args:
        table: the rows.
        places: int64 ``[n, N]``, see :meth:`~biencoder.data.table.ExampleTable.passage`; -1 for none.
    """
    return replace(table, negative_hashes=_with_more(table, places), rows=_MinedRows(table.rows, table, places))


@dataclass(frozen=True, eq=False)
class _MinedRows:
    """Rows with mined negatives.

    Attributes:
        own: the rows without them.
        source: the table that ``places`` point into.
        places: int64 ``[n, N]``, where each row's mined negatives are; -1 for none.
    """

    own: Rows
    source: ExampleTable
    places: NDArray[np.int64]

    def __getitem__(self, i: int) -> Example:
        example = self.own[i]
        more = tuple(self.source.passage(int(place)) for place in self.places[i] if place >= 0)
        scores = example.negative_scores
        return replace(
            example,
            negatives=example.negatives + more,
            negative_scores=None if scores is None else scores + (float("nan"),) * len(more),
        )

    def origin(self, i: int) -> tuple[int, int]:
        return self.own.origin(i)

    def take(self, rows: NDArray[np.int64]) -> "_MinedRows":
        return _MinedRows(self.own.take(rows), self.source, self.places[rows])


def _with_more(table: ExampleTable, places: NDArray[np.int64]) -> Ragged:
    own, is_mined = table.negative_hashes, places >= 0
    hashes = np.concatenate([table.positive_hashes.values, own.values])
    owners = np.concatenate([own.owners(), np.nonzero(is_mined)[0]])
    values = np.concatenate([own.values, hashes[places[is_mined]]])[np.argsort(owners, kind="stable")]
    return Ragged(values, np.concatenate([[0], np.cumsum(own.lengths + is_mined.sum(axis=1))]))
