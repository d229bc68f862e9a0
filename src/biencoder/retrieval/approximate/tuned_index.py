"""An index that looks at as many lists as it needs, measured on some queries."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biencoder.model.representations.ragged import Vectors
from biencoder.retrieval.approximate.inverted_file import InvertedFile, recall
from biencoder.retrieval.search import search

LEAST_RECALL = 0.99
ENOUGH = 4  # vectors in the lists, on average, for each neighbour that is sought: of too few, all lists are searched
SOUGHT = 200  # queries whose neighbours are sought, to see how many lists must be looked at
STEPS = 8  # between a number of lists that is too small and its double


@dataclass(frozen=True)
class TunedIndex:
    """An index, and how it is searched.

    Attributes:
        inverted_file: the index.
        probes: lists that are looked at.
        recall: the share of the nearest texts that it then finds, measured on some queries.
    """

    inverted_file: InvertedFile
    probes: int
    recall: float

    def search(self, queries: Vectors, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores, which are exact, and numbers of the texts that were found: ``[Q, min(k, N)]``."""
        return self.inverted_file.search(queries, k, self.probes)


def sample(count: int) -> NDArray[np.int64]:
    """Evenly spaced numbers below ``count``, as many as are worth a search."""
    return np.unique(np.linspace(0, count - 1, min(count, SOUGHT)).astype(np.int64))


def tuned(file: InvertedFile, queries: Vectors, own: Sequence[int], neighbours: int) -> TunedIndex:
    """The index with as many probes as it needs to find nearly all neighbours of these queries.

    Args:
        file: the index.
        queries: a sample.
        own: the number of each query's own text, which everybody finds and which does not count; -1 for none.
        neighbours: texts that are sought for each query.
    """
    _, wanted = search(queries, file.vectors, neighbours)

    def found_with(probes: int) -> float:
        return recall(file.search(queries, neighbours, probes)[1], wanted, own)

    few = probes = min(file.lists, max(1, -(-ENOUGH * neighbours * file.lists // len(file.vectors))))
    while (found := found_with(probes)) < LEAST_RECALL and probes < file.lists:
        few, probes = probes, min(2 * probes, file.lists)
    between = range(few, probes, max(1, few // STEPS))[1:]
    place = bisect_left(between, LEAST_RECALL, key=found_with)
    if place < len(between):
        probes, found = between[place], found_with(between[place])
    return TunedIndex(file, probes, found)
