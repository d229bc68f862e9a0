"""An inverted-file index of faiss over stored vectors. It names candidates; their scores are computed exactly.

Jégou, Douze and Schmid 2011, "Product Quantization for Nearest Neighbor Search", section IV, with each number of a
vector in a byte instead of product codes. Where texts have a vector for each token, the tokens nearest to those of the
query name the candidates. A token of the query that does not find a text counts with the least similarity that it has
found (Lee et al. 2023, "Rethinking the Role of Token Retrieval in Multi-Vector Retrieval", section 3.2).

Up to `MANY` vectors, the number of lists grows with the square root of theirs. Beyond, lists stop growing and there are
more of them, so that a query looks at no more vectors; their centres are made by parts and found by a graph (HNSW).

Shapes: N texts, T vectors of all texts, D dimensions, Q queries, L vectors of a query, F that are found for each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from biencoder.model.parallel.sharing import share_out
from biencoder.model.representations.ragged import Ragged, Vectors
from biencoder.retrieval.approximate.parts import centres
from biencoder.retrieval.search import SCORE_BYTES, blocks, candidates, in_parts, search

Results: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]

OVER = 2  # times as many candidates as results, where a query has one vector: bytes order texts nearly as floats do
FOUND = 512  # vectors that each vector of a query finds, where a text has several
LISTS = 4  # times the square root of the number of vectors
MANY = 1 << 18  # vectors, from which on a list has as many as it then has: 128
NEIGHBOURS_OF_A_CENTRE = 32  # in the graph
LEAST_IN_LIST, MOST_IN_LIST = 39, 64  # vectors that faiss wants for each list, and that are enough to place it


@dataclass(frozen=True)
class InvertedFile:
    """An index over vectors, and the vectors.

    Attributes:
        index: faiss's, over all T vectors.
        vectors: of the texts: ``[N, D]``, or several for each.
    """

    index: Any
    vectors: Vectors

    @property
    def lists(self) -> int:
        """Parts into which the vectors are divided by nearness."""
        return int(self.index.nlist)

    def search(self, queries: Vectors, k: int, probes: int) -> Results:
        """The best texts among the candidates: scores and numbers ``[Q, min(k, N)]``, as exact search orders them.

        Ranks that share their work search for some of the queries each.

        Args:
            queries: ``[Q, D]``, or a vector for each of their tokens.
            k: results per query.
            probes: lists that are looked at, those nearest to a vector of the query; all of them for a query that
                otherwise finds too little.
        """
        wanted = min(k, len(self.vectors))
        found = share_out(lambda part: self._best(part, wanted, probes), in_parts(queries))
        scores, numbers = (np.concatenate(each) for each in zip(*found, strict=True))
        return scores, numbers

    def _best(self, queries: Vectors, k: int, probes: int) -> Results:
        """The best ``k`` for each of a few queries."""
        if isinstance(queries, Ragged):
            best = list(self._by_tokens(queries, k, probes))
        else:
            best = list(self._by_vector(queries, k, probes))
        none = np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        scores, numbers = (np.concatenate(each) for each in zip(none, *best, strict=True))
        return scores, numbers

    def _by_vector(self, queries: NDArray[np.float32], k: int, probes: int) -> Iterator[Results]:
        """The best ``k`` for queries that have one vector each, as many at a time as there is room for candidates."""
        named_QC = self._named(queries, candidates(k, OVER), probes)
        step = max(1, SCORE_BYTES // (4 * named_QC.shape[1] * queries.shape[1]))
        for start in range(0, len(queries), step):
            part, named = queries[start : start + step], named_QC[start : start + step]
            scores, numbers = _best_of_named(part, self.vectors, named, k)
            for q in np.flatnonzero((named >= 0).sum(axis=1) < k).tolist():
                scores[q], numbers[q] = self._looking_everywhere(part[q : q + 1], k)
            yield scores, numbers

    def _by_tokens(self, queries: Ragged, k: int, probes: int) -> Iterator[Results]:
        """The best ``k`` for each query that has several vectors."""
        for q in range(len(queries)):
            query = queries[q : q + 1]
            named = self._named_by_tokens(query, candidates(k), probes)
            yield self._ranked(query, named, k) if len(named) >= k else self._looking_everywhere(query, k)

    def _looking_everywhere(self, query: Vectors, k: int) -> Results:
        """The best ``k`` for a query that finds fewer in its lists: in all lists or, if need be, among all texts."""
        if isinstance(query, Ragged):
            named = self._named_by_tokens(query, candidates(k), self.lists)
        else:
            (named,) = self._named(query, candidates(k, OVER), self.lists)
            named = named[named >= 0]
        return self._ranked(query, named if len(named) >= k else np.arange(len(self.vectors)), k)

    def _ranked(self, query: Vectors, numbers: NDArray[np.int64], k: int) -> Results:
        """The best ``k`` of these texts for one query."""
        scores, places = search(query, self.vectors[numbers], k)
        return scores, numbers[places]

    def _named(self, queries: NDArray[np.float32], most: int, probes: int) -> NDArray[np.int64]:
        """The candidates of each query ``[Q, most]``: numbers of texts, ascending; -1 first, where there are fewer."""
        self.index.nprobe = probes
        named_QC: NDArray[np.int64] = self.index.search(np.ascontiguousarray(queries), most)[1]
        named_QC.sort(axis=1)
        return named_QC

    def _named_by_tokens(self, query: Ragged, most: int, probes: int) -> NDArray[np.int64]:
        self.index.nprobe = probes
        assert isinstance(self.vectors, Ragged)
        nearness_LF, rows_LF = self.index.search(query.vectors, min(FOUND, self.index.ntotal))
        texts_LF = np.searchsorted(self.vectors.starts, rows_LF, "right") - 1
        texts, gains = _gains(nearness_LF, texts_LF, rows_LF >= 0)
        return np.sort(texts[np.argsort(-gains, kind="stable")[:most]])


def _best_of_named(queries: NDArray[np.float32], vectors: Any, named_QC: NDArray[np.int64], k: int) -> Results:
    """The best ``k`` of each query's candidates, as exact search orders them; they are in ascending order."""
    import torch

    gathered_QCD = torch.from_numpy(np.asarray(vectors[named_QC], np.float32))
    queries_QD = torch.from_numpy(np.asarray(queries, np.float32))
    scores_QC = torch.bmm(gathered_QCD, queries_QD[:, :, None])[:, :, 0].numpy()
    scores_QC[named_QC < 0] = -np.inf
    order = np.argsort(-scores_QC, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_QC, order, axis=1), np.take_along_axis(named_QC, order, axis=1)


def _gains(
    nearness_LF: NDArray[np.float32], texts_LF: NDArray[np.int64], found_LF: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The texts that were found, and by how much each vector's best match in them exceeds the least that it found."""
    least_L1 = np.where(found_LF, nearness_LF, np.inf).min(axis=1, keepdims=True)
    places, rest = np.nonzero(found_LF)
    texts, gains = texts_LF[places, rest], (nearness_LF - least_L1)[places, rest]
    # The nearest come first in each row, so the first time that a vector finds a text is its best match there.
    _, firsts = np.unique(places * (1 + int(texts_LF.max(initial=0))) + texts, return_index=True)
    named, owners = np.unique(texts[firsts], return_inverse=True)
    sums = np.bincount(owners, weights=gains[firsts], minlength=len(named)).astype(np.float64)
    return named, sums


def build(vectors: Vectors) -> InvertedFile:
    """Divide the vectors into lists, and put each into its list. The index is held in memory: T x D bytes."""
    rows: Any = vectors.vectors if isinstance(vectors, Ragged) else vectors
    index = _with_centres(rows) if len(rows) > MANY else _trained(rows)
    for start, stop in blocks(*rows.shape):
        index.add(np.asarray(rows[start:stop], np.float32))
    return InvertedFile(index, vectors)


def _trained(rows: Any) -> Any:
    """An empty index whose centres faiss has made."""
    import faiss

    lists = max(1, min(round(LISTS * len(rows) ** 0.5), len(rows) // LEAST_IN_LIST))
    index = faiss.index_factory(rows.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(np.asarray(rows[_some(rows, MOST_IN_LIST * lists)], np.float32))
    return index


def _with_centres(rows: Any) -> Any:
    """An empty index for so many vectors that faiss would take long to make its centres."""
    import faiss

    lists = round(len(rows) / (MANY**0.5 / LISTS))
    found = centres(rows, _some(rows, MOST_IN_LIST * lists), lists)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    kind = f"IVF{len(found)}_HNSW{NEIGHBOURS_OF_A_CENTRE},SQ8"
    index: Any = faiss.index_factory(rows.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.quantizer.add(found)
    index.train(np.asarray(rows[_some(rows, MANY // MOST_IN_LIST)], np.float32))  # of the bytes: centres are there
    return index


def _some(rows: Any, most: int) -> NDArray[np.int64]:
    """Numbers of evenly spaced rows."""
    return np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64))


def recall(found: NDArray[np.int64], wanted: NDArray[np.int64], own: Sequence[int]) -> float:
    """The share of the texts that exact search finds, without each query's own text, that was found too."""
    shares = [
        np.isin(w[w != text], f).mean() for f, w, text in zip(found, wanted, own, strict=True) if (w != text).any()
    ]
    return float(np.mean(shares)) if shares else 1.0
