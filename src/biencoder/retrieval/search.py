"""Exact search by inner product over any number of vectors, in bounded memory.

Ranks that share their work search for some of the queries each.

Shapes: Q queries, N documents, D dimensions, B documents in a block, K results per query.
"""

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TypeAlias, overload

import numpy as np

from biencoder.model.parallel.sharing import share_out
from biencoder.model.representations.ragged import AnyVectors, Ragged, Vectors

if TYPE_CHECKING:
    import torch

    from biencoder.model.representations.representation import Representation

Matrix: TypeAlias = "np.ndarray | torch.Tensor"  # ``[N, D]`` float32; a tensor on a GPU is searched there
Documents: TypeAlias = "Matrix | Representation"

BLOCK_BYTES = 64 << 20  # bytes of document vectors searched at a time: large enough for full speed
SCORE_BYTES = 64 << 20  # bytes of scores held at a time
GPU_SCORE_BYTES = 1 << 30
GPU_SHARE = 0.5  # of a GPU's free memory, for vectors that are searched again and again
CANDIDATES, LEAST_CANDIDATES = 10, 100  # that a coarse search names for each result that is wanted, and at all
PAIRS_AT_ONCE = 256  # of texts with a vector for each token
QUERIES_AT_ONCE = 512  # that are searched for at a time
TEXTS_AT_ONCE = 128  # queries with a vector for each token that are searched for at a time
MANY = 384  # from this many queries on, faiss is faster; for 256, one product and torch's top-k are 6 times as fast


def candidates(k: int, over: int = CANDIDATES) -> int:
    """How many documents a coarse search names for ``k`` results, which are then ranked by exact scores.

    Args:
        k: results per query.
        over: how many for each result; in all, never fewer than :data:`LEAST_CANDIDATES`.
    """
    return max(LEAST_CANDIDATES, over * k)


class Blocks(Protocol):
    """A matrix of documents ``[N, D]`` of which a block is made when it is asked for."""

    @property
    def ndim(self) -> int:
        """2."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


def search(
    queries: Vectors,
    corpus: "Vectors | Matrix | Blocks",
    k: int,
    block_rows: int | None = None,
    device: "torch.device | None" = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` documents with the largest inner product for each query, exactly.

    Results are sorted by score, largest first. Equal scores are sorted by index, smallest first, even at the last
    place. A score is a float32 sum, so its last bits depend on the machine's order of adding.

    Args:
        queries: ``[Q, D]`` float32, or a vector for each of their tokens.
        corpus: ``[N, D]`` float32, or the same of passages, in memory, memory-mapped, or where
            :func:`resident` has put it; it is read once, block by block. Its values must be finite. This function does
            not check that: the caller checks vectors once, when it reads the file.
        k: results per query.
        block_rows: documents in a block; None for about 64 MB of them.
        device: where each block is searched; None for where the corpus is.

    Returns:
        Scores ``[Q, min(k, N)]`` float32 and indices ``[Q, min(k, N)]`` int64.

    Raises:
        ValueError: shapes that do not fit, k below 1, or queries with values that are not finite.
    """
    asked = queries.vectors if isinstance(queries, Ragged) else queries
    rows = corpus.vectors if isinstance(corpus, Ragged) else corpus
    if asked.ndim != 2 or rows.ndim != 2 or asked.shape[1] != rows.shape[1] or (asked is queries) != (rows is corpus):
        raise ValueError(f"queries {asked.shape} and corpus {rows.shape} must be matrices of the same kind and width")
    if not (good := np.isfinite(asked).all(axis=1)).all():
        raise ValueError(f"the vector of query {int(good.argmin())} has values that are not finite")
    best = nothing(len(queries))
    text_size = rows.shape[1] * (corpus.longest if isinstance(corpus, Ragged) else 1)
    for start, stop in blocks(len(corpus), text_size, block_rows):
        block = corpus[start:stop]
        best = extend(best, queries, on(device, block), start, k)
    return best


def nothing(queries: int) -> tuple[np.ndarray, np.ndarray]:
    """The results before any block is seen: scores ``[Q, 0]`` and indices ``[Q, 0]``."""
    return np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64)


def blocks(rows: int, dim: int, block_rows: int | None = None) -> Iterator[tuple[int, int]]:
    """Start and stop of each block of a matrix with ``rows`` rows of ``dim`` float32 values."""
    step = block_rows or max(1, BLOCK_BYTES // (4 * dim))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def resident(vectors: AnyVectors, device: "torch.device") -> "AnyVectors | Matrix":
    """The vectors in a GPU's memory, if that is where they are searched and half of what is free holds them."""
    import torch

    if device.type != "cuda" or isinstance(vectors, Ragged):
        return vectors
    free, _ = torch.cuda.mem_get_info(device)
    return on(device, vectors) if vectors.nbytes <= GPU_SHARE * free else vectors


@overload
def on(device: "torch.device | None", vectors: Matrix) -> Matrix: ...
@overload
def on(device: "torch.device | None", vectors: "Vectors | Matrix") -> Documents: ...
def on(device: "torch.device | None", vectors: "Vectors | Matrix") -> Documents:
    """The vectors on the device where they are searched; None is a CPU."""
    import torch

    if isinstance(vectors, Ragged):
        return vectors.padded(device)
    if device is None or device.type == "cpu" or not isinstance(vectors, np.ndarray):
        return vectors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of a mapped file that must not be written; we only read
        return torch.from_numpy(np.ascontiguousarray(vectors)).to(device)


def extend(
    best: tuple[np.ndarray, np.ndarray], queries: Vectors, block: Documents, offset: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best ``k`` of earlier results and of one more block.

    Args:
        best: scores and indices so far, from :func:`nothing` or from here.
        queries: ``[Q, D]``, or a vector for each of their tokens; finite.
        block: ``[B, D]``, or the same of passages, from :func:`on`; finite, the documents ``offset``, ``offset + 1``,
            and so on; blocks come in ascending order.
        offset: index of the block's first document.
        k: results per query.

    Raises:
        ValueError: k below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}: at least 1 result a query")
    if not isinstance(queries, Ragged):
        queries = np.ascontiguousarray(queries, dtype=np.float32)
    if isinstance(block, np.ndarray):
        block = np.ascontiguousarray(block, dtype=np.float32)
    found = share_out(lambda part: _search_block(part, block, k), in_parts(queries))
    scores, indices = (np.concatenate(each) for each in zip(*found, strict=True))
    return _best_of(best, scores, indices + offset, k)


def in_parts(queries: AnyVectors) -> list[AnyVectors]:
    """The queries in parts, as they are searched for; one empty part where there is none."""
    at_once = TEXTS_AT_ONCE if isinstance(queries, Ragged) else QUERIES_AT_ONCE
    return [queries[start : start + at_once] for start in range(0, max(1, len(queries)), at_once)]


def extend_by_scores(
    best: tuple[np.ndarray, np.ndarray], scores_QB: np.ndarray, offset: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`extend` by a block of documents whose scores are known: ``[Q, B]``."""
    return _best_of(best, scores_QB, np.broadcast_to(offset + np.arange(scores_QB.shape[1]), scores_QB.shape), k)


def _best_of(
    best: tuple[np.ndarray, np.ndarray], scores: np.ndarray, indices: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([best[0], scores], axis=1)
    indices = np.concatenate([best[1], indices], axis=1)
    # Earlier documents come first and a block's results are in order, so a stable sort leaves ties sorted by index.
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)


def _search_block(queries: Vectors, block: Documents, k: int) -> tuple[np.ndarray, np.ndarray]:
    # Ask for one more result. If it ties with the last one, more may tie, and the choice among them was arbitrary.
    found = min(k + 1, len(block))
    if isinstance(block, np.ndarray) and isinstance(queries, np.ndarray) and len(queries) >= MANY:
        scores, indices = _faiss_top(queries, block, found)
    else:
        scores, indices = _product_and_top(queries, block, found)
    order = np.lexsort((indices, -scores), axis=1)
    scores, indices = np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)
    if found > k:
        tied = np.flatnonzero(scores[:, k - 1] == scores[:, k])
        scores, indices = scores[:, :k].copy(), indices[:, :k].copy()
        step = max(1, SCORE_BYTES // (4 * len(block)))
        for start in range(0, len(tied), step):
            rows = tied[start : start + step]
            scores[rows], indices[rows] = _settle(_products(queries[rows], block).cpu().numpy(), k)
    return scores, indices


def score_pairs(queries: Vectors, documents: Vectors) -> np.ndarray:
    """The score of each query with the document of the same number: ``[Q]``."""
    if isinstance(queries, Ragged):
        assert isinstance(documents, Ragged)
        pairs = [
            (queries[start : start + PAIRS_AT_ONCE], documents[start : start + PAIRS_AT_ONCE])
            for start in range(0, len(queries), PAIRS_AT_ONCE)
        ]
        scored = share_out(lambda pair: pair[0].padded().pair_scores(pair[1].padded()).numpy(), pairs)
        return np.concatenate([np.empty(0, np.float32), *scored])
    assert isinstance(documents, np.ndarray)
    scores: np.ndarray = np.einsum("qd,qd->q", queries, documents)
    return scores


def _products(queries: Vectors, block: Documents) -> "torch.Tensor":
    """The scores ``[Q, B]``, where the block is."""
    import torch

    if isinstance(queries, Ragged):
        assert not isinstance(block, np.ndarray | torch.Tensor)
        with torch.no_grad():
            return queries.padded(block.device).scores(block)
    assert isinstance(block, np.ndarray | torch.Tensor)
    if isinstance(block, np.ndarray):
        return torch.from_numpy(queries @ block.T)
    return block.new_tensor(queries) @ block.T


def _product_and_top(queries: Vectors, block: Documents, k: int) -> tuple[np.ndarray, np.ndarray]:
    import torch

    held = SCORE_BYTES if isinstance(block, np.ndarray) else GPU_SCORE_BYTES
    step = max(1, held // (4 * len(block)))
    parts = [_products(queries[i : i + step], block).topk(k) for i in range(0, max(1, len(queries)), step)]
    values, indices = (torch.cat([part[place] for part in parts]).cpu().numpy() for place in range(2))
    return values, indices


def _faiss_top(queries: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    top: tuple[np.ndarray, np.ndarray] = faiss.knn(queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)
    return top


def _settle(scores_QB: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k by score and then by index, for rows where several documents tie for the last place."""
    last_Q = np.partition(scores_QB, -k, axis=1)[:, -k]
    chosen = np.empty((len(scores_QB), k), np.int64)
    for row, (scores, last) in enumerate(zip(scores_QB, last_Q, strict=True)):
        above = np.flatnonzero(scores > last)
        above = above[np.argsort(-scores[above], kind="stable")]
        chosen[row] = np.concatenate([above, np.flatnonzero(scores == last)[: k - len(above)]])
    return np.take_along_axis(scores_QB, chosen, axis=1), chosen
