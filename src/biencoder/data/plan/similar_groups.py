"""Clusters of rows that are hard to tell apart; batches are made of them.

In a batch of random rows, the model can already tell the other passages from the positive. In a batch of rows with
similar queries, the other passages are hard negatives, at no cost. This is topic-aware sampling (Hofstätter et al.
2021, "Efficiently Teaching an Effective Dense Retriever with Balanced Topic Aware Sampling"). The paper makes clusters
with k-means. We cluster a row with its nearest neighbours, because queries often differ most in their wording ("What
are the symptoms of …"). k-means separates questions about one thing along this direction.

Shapes: n rows, m distinct vectors, D dimensions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]


def similar_groups(
    vectors: Vectors, copies: Indices, size: int, seed: int, parts: Sequence[Indices] | None = None
) -> Indices:
    """An order of rows in which every ``size`` rows are a group: one row and its nearest neighbours.

    Draw a row, group it with its nearest neighbours that are in no group yet, and repeat. No vector is twice in a
    group. Groups with fewer than ``size`` rows come last. The cost is O(m D P / size), P the vectors in a part.

    Args:
        vectors: ``[m, D]``, in memory or memory-mapped; inner products are the similarity.
        copies: int64 ``[m]``, how many rows have each vector; n in all.
        size: rows in a group.
        seed: seed of the random order.
        parts: numbers of vectors, each in one part, which has its own groups; None for one part.

    Returns:
        int64 ``[n]``, the vector of each row.
    """
    drawn = np.random.Generator(np.random.Philox(seed)).permutation(len(vectors))
    place = np.empty_like(drawn)
    place[drawn] = np.arange(len(drawn))
    groups: list[Indices] = []
    for numbers in (drawn,) if parts is None else parts:
        part = numbers[np.argsort(place[numbers])]
        groups += [part[group] for group in _groups(vectors[part], copies[part], size)]
    groups.sort(key=len, reverse=True)
    return np.concatenate(groups) if groups else np.empty(0, np.int64)


def _groups(vectors: Vectors, copies: Indices, size: int) -> list[Indices]:
    left, groups = copies.copy(), []
    for first in range(len(vectors)):
        while left[first]:
            similarity = vectors @ vectors[first]
            similarity[left == 0] = -np.inf
            similarity[first] = np.inf
            count = min(size, int(np.count_nonzero(left)))
            group = np.argpartition(similarity, -count)[-count:]
            left[group] -= 1
            groups.append(group)
    return groups


def shuffle_clusters(order: Indices, bits: NDArray[np.uint64], size: int) -> Indices:
    """Shuffle the clusters of ``size`` consecutive rows in an order: int64 ``[n]``.

    An incomplete cluster stays at the end, so a batch of a multiple of ``size`` rows holds whole clusters.

    Args:
        order: an order of the rows, see :func:`similar_groups`.
        bits: uint64 ``[n]``, random bits.
        size: rows in a cluster.
    """
    whole = len(order) // size * size
    shuffled = np.argsort(bits[:whole:size], kind="stable")
    return np.concatenate([order[:whole].reshape(-1, size)[shuffled].ravel(), order[whole:]])
