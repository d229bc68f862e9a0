"""An order of all rows in which neighbours are similar, from which batches of rows that are hard to tell apart are cut.

The other passages of a batch of rows at random are negatives that the model can tell from the positive already. Among
rows with similar queries they are hard negatives, at no cost: topic-aware sampling (Hofstätter et al. 2021,
"Efficiently Teaching an Effective Dense Retriever with Balanced Topic Aware Sampling").

Shapes: n rows, D dimensions.
"""

import numpy as np
from numpy.typing import NDArray

LEAF = 8  # rows that are not parted any more
ROUNDS = 6  # of moving the two centres, after which they hardly move
BLOCK = 1 << 16  # rows in memory at a time; of more, centres are found from as many

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]


def similar_order(vectors: Vectors, seed: int) -> Indices:
    """Rows in the order of the leaves of a tree of balanced two-means: int64 ``[n]``.

    Each node parts its rows by which of two centres they are nearer to, into halves of one size. So any run of rows
    that follow each other is a cluster, whatever its length, and the cost is O(n D log n).

    Args:
        vectors: ``[n, D]``, in memory or memory-mapped; inner products are the similarity.
        seed: decides from which row each node starts.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    order = np.arange(len(vectors))
    nodes = [(0, len(vectors))]
    while nodes:
        start, stop = nodes.pop()
        if stop - start <= LEAF:
            continue
        rows = order[start:stop]
        order[start:stop] = rows[np.argsort(_direction_of(vectors, rows, rng), kind="stable")]
        middle = (start + stop) // 2
        nodes += [(middle, stop), (start, middle)]
    return order


def _direction_of(vectors: Vectors, rows: Indices, rng: np.random.Generator) -> Vectors:
    """How much nearer each row is to the second of two centres than to the first: ``[len(rows)]``."""
    sample = vectors[rows[:: -(-len(rows) // BLOCK)]]
    first = sample[rng.integers(len(sample))]
    centres = first, sample[np.argmin(sample @ first)]
    for _ in range(ROUNDS):
        halves = np.array_split(sample[np.argsort(sample @ (centres[1] - centres[0]), kind="stable")], 2)
        centres = halves[0].mean(axis=0), halves[1].mean(axis=0)
    blocks = (vectors[rows[start : start + BLOCK]] for start in range(0, len(rows), BLOCK))
    return np.concatenate([block @ (centres[1] - centres[0]) for block in blocks])


def shuffle_clusters(order: Indices, draws: NDArray[np.uint64], size: int) -> Indices:
    """The order cut into clusters of ``size`` rows that follow each other, and these shuffled: int64 ``[n]``.

    Where the first cut is made is drawn too, so that no two passes over the rows have the same clusters. The incomplete
    ones, at both ends of the order, come last: batches of a multiple of ``size`` rows hold whole clusters.

    Args:
        order: of the rows, see :func:`similar_order`.
        draws: uint64 ``[n]``, random bits.
        size: rows a cluster.
    """
    first_cut = int(draws[0] % np.uint64(size))
    starts = np.unique(np.clip(np.arange(first_cut - size, len(order), size), 0, None))
    clusters = np.split(order, starts[1:])
    lengths = np.diff(np.append(starts, len(order)))
    return np.concatenate([clusters[i] for i in np.lexsort((draws[starts], lengths < size))])
