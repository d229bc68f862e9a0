"""The distinct queries of a table, each encoded once, and similarities of single pairs.

Shapes: n rows of the table, Q queries of a block, P pairs, C passages, D dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biencoder.data.table import ExampleTable
from biencoder.retrieval.text_encoder import TextEncoder, finite

PAIRS_AT_ONCE = 1 << 14  # pairs whose vectors are gathered at a time

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]


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
    """Vectors of the rows' queries, ``[Q, D]``. A row without its own prompt uses the model's."""
    examples = [table[int(row)] for row in rows]
    own = np.array([example.prompt is not None for example in examples])
    vectors_QD = np.empty((len(rows), encoder.dim), np.float32)
    if own.any():
        vectors_QD[own] = encoder.encode([f"{e.prompt}{e.query}" for e in examples if e.prompt is not None])
    if not own.all():
        vectors_QD[~own] = encoder.encode_queries([e.query for e in examples if e.prompt is None])
    return finite(vectors_QD, "query")


def similarities(queries_QD: Vectors, owners: Indices, matrix_CD: Vectors, numbers: Indices) -> Vectors:
    """Inner products of single pairs: ``[P]``.

    Args:
        queries_QD: vectors of queries.
        owners: int64 ``[P]``, the query of each pair.
        matrix_CD: vectors of passages, in memory or memory-mapped.
        numbers: int64 ``[P]``, the passage of each pair.
    """
    scores_P = np.empty(len(numbers), np.float32)
    for start in range(0, len(numbers), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        scores_P[part] = np.einsum("pd,pd->p", queries_QD[owners[part]], matrix_CD[numbers[part]])
    return scores_P
