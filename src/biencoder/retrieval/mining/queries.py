"""The distinct queries of a table, each encoded once, and similarities of single pairs.

Shapes: n rows of the table, Q queries of a block, P pairs, C passages, D dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biencoder.data.table import ExampleTable
from biencoder.model.representations.ragged import Vectors, in_order
from biencoder.retrieval.search import score_pairs
from biencoder.retrieval.text_encoder import TextEncoder, finite

PAIRS_AT_ONCE = 1 << 14  # pairs whose vectors are gathered at a time

Indices = NDArray[np.int64]
Scores = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Queries:
    """The distinct queries of a table in order of appearance, and the rows of each.

    Attributes:
        number: int64 ``[n]``, the number of each row's query.
        first: the first row of each query.
        rows: all rows: first the rows of query 0, then the rows of query 1, and so on.
        starts: where each query's rows begin in ``rows``; then the end of the last query's rows.
    """

    number: Indices
    first: Indices
    rows: Indices
    starts: Indices

    @classmethod
    def of(cls, hashes: NDArray[np.uint64]) -> "Queries":
        """Rows of equal hash have the same query."""
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        number = rank[inverse]
        rows = np.argsort(number, kind="stable")
        return cls(number, np.sort(first), rows, np.searchsorted(number[rows], np.arange(len(first) + 1)))

    def __len__(self) -> int:
        return len(self.first)

    def blocks(self, size: int) -> Iterator[tuple[int, int, Indices]]:
        """For each block: its first query, the one after its last, and its rows."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield start, stop, self.rows[self.starts[start] : self.starts[stop]]


def encode_queries(encoder: TextEncoder, table: ExampleTable, rows: Indices) -> Vectors:
    """What the encoder compares of the rows' queries. A row without its own prompt uses the model's."""
    examples = [table[int(row)] for row in rows]
    own = np.array([example.prompt is not None for example in examples])
    parts = []
    if own.any():
        prompted = [f"{e.prompt}{e.query}" for e in examples if e.prompt is not None]
        parts.append((np.flatnonzero(own), encoder.represent_queries(prompted, prompt="")))
    if not own.all():
        plain = [e.query for e in examples if e.prompt is None]
        parts.append((np.flatnonzero(~own), encoder.represent_queries(plain)))
    return finite(in_order(parts, encoder.dim), "query")


def similarities(queries: Vectors, owners: Indices, passages: Vectors, numbers: Indices) -> Scores:
    """Scores of single pairs: ``[P]``.

    Args:
        queries: of which some are asked.
        owners: int64 ``[P]``, the query of each pair.
        passages: in memory or memory-mapped.
        numbers: int64 ``[P]``, the passage of each pair.
    """
    scores_P = np.empty(len(numbers), np.float32)
    for start in range(0, len(numbers), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        scores_P[part] = score_pairs(queries[owners[part]], passages[numbers[part]])
    return scores_P
