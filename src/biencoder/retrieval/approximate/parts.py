"""Parts of vectors that lie near each other, made by k-means within k-means.

k-means with K centres compares each vector with all of them. As many centres as a large number of vectors needs would
cost the square of that number. Here a vector is compared with at most `BRANCHES` centres, then with those of its part,
and so on.

Shapes: N vectors, D dimensions.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from biencoder.retrieval.search import blocks, search

BRANCHES = 256  # centres at a time
ROUNDS = 10  # of k-means
SAMPLED = 64  # vectors for each centre, which are enough to place it
LARGEST_SHARE = 0.9  # of the vectors in one part; of more, k-means cannot tell them apart
SOUGHT, NEIGHBOURS = 200, 10  # vectors whose neighbours are sought, and how many

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]


def near_parts(vectors: Vectors, most: int, seed: int = 0) -> list[Indices]:
    """All vectors in parts of at most ``most``, made by nearness.

    Args:
        vectors: ``[N, D]``, in memory or memory-mapped.
        most: vectors in a part.
        seed: of k-means.

    Returns:
        The numbers of each part's vectors, ascending.
    """
    return list(_near_parts(vectors, np.arange(len(vectors)), most, seed))


def centres(vectors: Vectors, rows: Indices, count: int, seed: int = 0) -> Vectors:
    """About ``count`` centres of some of the vectors, each of its neighbourhood: ``[count, D]``.

    Args:
        vectors: ``[N, D]``, in memory or memory-mapped.
        rows: numbers of the vectors that are looked at, ascending.
        count: how many centres to make.
        seed: of k-means.
    """
    if count <= BRANCHES:
        return _kmeans(vectors, rows, max(1, count), seed)
    parts = _split(vectors, rows, min(BRANCHES, round(count**0.5)), seed)
    return np.concatenate([centres(vectors, part, round(count * len(part) / len(rows)), seed) for part in parts])


def recall_within(vectors: Vectors, parts: list[Indices]) -> float:
    """The share of the nearest vectors of a sample that are in the same part, 0 to 1."""
    part_of = np.empty(len(vectors), np.int32)
    for number, part in enumerate(parts):
        part_of[part] = number
    sample = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), SOUGHT)).astype(np.int64))
    _, found = search(np.asarray(vectors[sample], np.float32), vectors, NEIGHBOURS + 1)
    others = found != sample[:, None]
    return float((part_of[found] == part_of[sample][:, None])[others].mean())


def _near_parts(vectors: Vectors, rows: Indices, most: int, seed: int) -> Iterator[Indices]:
    if len(rows) <= most:
        yield rows
        return
    parts = _split(vectors, rows, min(BRANCHES, -(-2 * len(rows) // most)), seed)
    if max(map(len, parts)) > LARGEST_SHARE * len(rows):
        yield from np.array_split(rows, -(-len(rows) // most))
        return
    for part in parts:
        yield from _near_parts(vectors, part, most, seed)


def _split(vectors: Vectors, rows: Indices, count: int, seed: int) -> list[Indices]:
    """The rows by the nearest of ``count`` centres; none is empty."""
    import faiss

    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(_kmeans(vectors, rows, count, seed))
    nearest = np.empty(len(rows), np.int32)
    for start, stop in blocks(len(rows), vectors.shape[1]):
        nearest[start:stop] = index.search(np.asarray(vectors[rows[start:stop]], np.float32), 1)[1][:, 0]
    order = np.argsort(nearest, kind="stable")
    found = np.split(rows[order], np.cumsum(np.bincount(nearest))[:-1])
    return [part for part in found if len(part)]


def _kmeans(vectors: Vectors, rows: Indices, count: int, seed: int) -> Vectors:
    """``count`` centres of the rows, or as many as there are rows."""
    import faiss

    some = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED * count)).astype(np.int64))]
    kmeans = faiss.Kmeans(vectors.shape[1], min(count, len(some)), niter=ROUNDS, seed=seed, min_points_per_centroid=1)
    kmeans.train(np.asarray(vectors[some], np.float32))
    assert kmeans.centroids is not None
    return kmeans.centroids
