"""A table whose rows have more hard negatives: passages of other rows, by their place."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biencoder.data.files.records import Example
from biencoder.data.table import ExampleTable, Ragged


@dataclass(frozen=True, eq=False)
class MinedTable(ExampleTable):
    """The same rows, each with its own hard negatives and then those mined; make one with `of`."""

    _original: ExampleTable
    _places: NDArray[np.int64]

    @classmethod
    def of(cls, table: ExampleTable, places: NDArray[np.int64]) -> "MinedTable":
        """Add negatives to every row of a table.

        Args:
            table: the rows.
            places: int64 ``[n, N]``, see :meth:`~biencoder.data.table.ExampleTable.passage`; -1 for none.
        """
        values: dict[str, Any] = {field.name: getattr(table, field.name) for field in fields(ExampleTable)}
        values["negative_hashes"] = _with_more(table, places)
        return cls(**values, _original=table, _places=places)

    def __getitem__(self, i: int) -> Example:
        example = self._original[i]
        more = tuple(self._original.passage(int(place)) for place in self._places[i] if place >= 0)
        scores = example.negative_scores
        return replace(
            example,
            negatives=example.negatives + more,
            negative_scores=None if scores is None else scores + (float("nan"),) * len(more),
        )


def _with_more(table: ExampleTable, places: NDArray[np.int64]) -> Ragged:
    own, is_mined = table.negative_hashes, places >= 0
    hashes = np.concatenate([table.positive_hashes.values, own.values])
    owners = np.concatenate([own.owners(), np.nonzero(is_mined)[0]])
    values = np.concatenate([own.values, hashes[places[is_mined]]])[np.argsort(owners, kind="stable")]
    return Ragged(values, np.concatenate([[0], np.cumsum(own.lengths + is_mined.sum(axis=1))]))
