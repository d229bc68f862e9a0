"""Hard negatives from a model's own ranking: a search, then the stages of `biencoder.retrieval.mining.filters`.

Memory holds one block of queries with their candidates, and the negatives chosen so far. The vectors of the passages
are memory-mapped, and their texts are on disk.

Shapes: n rows of the table, Q rows or queries of a block, K candidates of each, D dimensions, N negatives per row.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from biencoder.config import MiningOptions
from biencoder.config.choices import KEEP, TOP
from biencoder.data.files.records import Example
from biencoder.data.table import ExampleTable
from biencoder.model.representations.ragged import Vectors
from biencoder.retrieval.mining.corpus import Candidates, contradicted, gather
from biencoder.retrieval.mining.filters import (
    Funnel,
    Indices,
    Mask,
    Pairs,
    Scores,
    below_limit,
    below_the_top,
    by_chance,
    by_rank,
    in_order,
    not_listed,
    not_the_query,
    share_limit,
)
from biencoder.retrieval.mining.queries import Queries, encode_queries, similarities
from biencoder.retrieval.mining.ranking import ranking
from biencoder.retrieval.text_encoder import StartProgress, TextEncoder

logger = logging.getLogger(__name__)

CELLS = 1 << 20  # candidates of a block of queries: about 100 MB with all that is computed from them
ROWS_A_VETO = 512  # rows whose texts are in memory for the reranker


class PairScorer(Protocol):
    """What mining needs from :class:`biencoder.model.cross_encoder.CrossEncoder`."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """A logit for each query and passage, float32 ``[len(pairs)]``."""


@dataclass(frozen=True, eq=False)
class Mined:
    """The hard negatives of each row of a table.

    Attributes:
        table: the rows.
        candidates: the passages, by number.
        indices: int64 ``[n, N]``, the mined passages, most similar first; -1 if a row has fewer.
        scores: float32 ``[n, N]``, their similarities to the query.
        positive_scores: float32, similarities in the order of ``table.positive_hashes.values``.
        existing_scores: the same for ``table.negative_hashes.values``; None if the rows' own negatives are replaced.
        contradicted: bool, in the same order: own negatives left out, because they are positives of their query.
        stages: for each stage, its name, the candidates that it removed, and the candidates left.
        searched: candidates that the search found.
        absent_positives: number of distinct positives of the table that are not candidates.
    """

    table: ExampleTable
    candidates: Candidates
    indices: Indices
    scores: Scores
    positive_scores: Scores
    existing_scores: Scores | None
    contradicted: Mask
    stages: tuple[tuple[str, int, int], ...]
    searched: int
    absent_positives: int

    @property
    def counts(self) -> Indices:
        """Negatives mined for each row, int64 ``[n]``."""
        return np.asarray((self.indices >= 0).sum(axis=1))

    def mined(self, row: int) -> list[tuple[str, float]]:
        """What was mined for a row: text and similarity, most similar first."""
        pairs = zip(self.indices[row].tolist(), self.scores[row].tolist(), strict=True)
        return [(self.candidates[number], score) for number, score in pairs if number >= 0]

    def negatives(self, row: int, example: Example) -> list[tuple[str, float]]:
        """All hard negatives of a row with their similarities: its own that stay, then the mined ones.

        Args:
            row: number in the table.
            example: that row, ``table[row]``.
        """
        own: list[tuple[str, float]] = []
        if self.existing_scores is not None:
            places = range(*self.table.negative_hashes.offsets[row : row + 2].tolist())
            own = [
                (text, float(self.existing_scores[place]))
                for text, place in zip(example.negatives, places, strict=True)
                if not self.contradicted[place]
            ]
        return own + self.mined(row)


def mine(
    encoder: TextEncoder,
    table: ExampleTable,
    options: MiningOptions,
    corpus: Iterable[str] | None = None,
    *,
    reranker: PairScorer | None = None,
    progress: StartProgress | None = None,
) -> Mined:
    """Mine hard negatives for every row of a table.

    A passage is never a negative of a query that it answers in any row of the table, whatever its white space and case.

    Args:
        encoder: the model whose ranking is mined.
        table: training data; rows with the same query (and prompt) share one search.
        options: how many negatives to mine, and which.
        corpus: passages to find negatives among; None for the table's own positives and hard negatives.
        reranker: removes candidates that it scores like a positive.
        progress: called once with the number of texts to encode (and of rows to rerank), see
            :func:`~biencoder.retrieval.encode.encode_file`.

    Raises:
        UserError: the corpus has no text, a vector is not finite, or the folder for temporary files is full.
    """
    candidates = gather(table, corpus, with_negatives=options.existing == KEEP)
    queries = Queries.of(candidates.table.prompted_query)
    units = len(candidates) + len(queries) + (len(table) if reranker else 0)
    advance = progress(units, 0) if progress is not None else _silent
    vectors = candidates.vectors(encoder, advance)
    miner = _Miner(table, candidates, vectors, options, reranker)
    find = ranking(encoder, table, queries, vectors[: candidates.searchable], options)
    depth = min(options.depth, candidates.searchable)
    done = len(candidates)
    for start, stop, rows in queries.blocks(max(1, CELLS // depth)):
        asked = encode_queries(encoder, table, queries.first[start:stop])
        found = find(asked)
        done += stop - start
        advance(done)
        step = ROWS_A_VETO if reranker else max(1, CELLS // depth)
        for part in (rows[i : i + step] for i in range(0, len(rows), step)):
            place = queries.number[part] - start
            miner.select(part, asked[place], found[0][place], found[1][place])
            if reranker:
                done += len(part)
                advance(done)
    return miner.mined()


class _Miner:
    """Chooses negatives block by block, and collects them."""

    def __init__(
        self,
        table: ExampleTable,
        candidates: Candidates,
        vectors: Vectors,
        options: MiningOptions,
        reranker: PairScorer | None,
    ) -> None:
        self._table, self._candidates, self._vectors = table, candidates, vectors
        self._options, self._reranker = options, reranker
        self._funnel = Funnel()
        folded = candidates.table
        self._own = candidates.by_folded.find(folded.query)
        self._query = np.unique(folded.query, return_inverse=True)[1]
        known = candidates.by_folded.find(folded.positives)
        self._known = Pairs.of(self._query[table.positive_hashes.owners()], known, candidates.searchable)
        self._absent = len(np.unique(folded.positives[known < 0]))
        self._keeps = options.existing == KEEP
        had = candidates.by_folded.find(folded.negatives)
        self._had = Pairs.of(table.negative_hashes.owners(), had, candidates.searchable)
        self._contradicted = contradicted(table, folded)
        self._indices = np.full((len(table), options.negatives), -1)
        self._scores = np.zeros((len(table), options.negatives), np.float32)
        self._positive_scores = np.zeros(len(table.positive_hashes.values), np.float32)
        self._existing_scores = np.zeros(len(table.negative_hashes.values), np.float32)

    def select(self, rows: Indices, queries: Vectors, scores_QK: Scores, indices_QK: Indices) -> None:
        """Choose the negatives of ``rows`` from the candidates that the search found for their queries."""
        lowest_Q = self._lowest_positive(rows, queries)
        if self._keeps:
            places, offsets = self._table.negative_hashes.positions(rows)
            owners = np.repeat(np.arange(len(rows)), np.diff(offsets))
            numbers = self._candidates.negatives[places]
            self._existing_scores[places] = similarities(queries, owners, self._vectors, numbers)
        keep_QK = self._allowed(rows, scores_QK, indices_QK, lowest_Q)
        options = self._options
        top = options.choice == TOP
        columns_QK = by_rank(indices_QK) if top else by_chance(indices_QK, rows, options.seed)
        if self._reranker is not None:
            passed_QK = self._veto(self._reranker, rows, indices_QK, keep_QK, columns_QK)
            keep_QK = self._funnel.apply("the reranker's veto", keep_QK, passed_QK)
        chosen_QK = in_order(keep_QK, columns_QK, options.negatives)
        self._funnel.apply(f"{options.choice} {options.negatives} of a row are enough", keep_QK, chosen_QK)
        first_QN = np.argsort(~chosen_QK, axis=1, kind="stable")[:, : options.negatives]
        is_chosen = np.take_along_axis(chosen_QK, first_QN, axis=1)
        width = slice(0, first_QN.shape[1])
        self._indices[rows, width] = np.where(is_chosen, np.take_along_axis(indices_QK, first_QN, axis=1), -1)
        self._scores[rows, width] = np.where(is_chosen, np.take_along_axis(scores_QK, first_QN, axis=1), 0)

    def mined(self) -> Mined:
        """All that was chosen."""
        return Mined(
            table=self._table,
            candidates=self._candidates,
            indices=self._indices,
            scores=self._scores,
            positive_scores=self._positive_scores,
            existing_scores=self._existing_scores if self._keeps else None,
            contradicted=self._contradicted,
            stages=tuple(self._funnel.rows()),
            searched=self._funnel.searched,
            absent_positives=self._absent,
        )

    def _allowed(self, rows: Indices, scores_QK: Scores, indices_QK: Indices, lowest_Q: Scores) -> Mask:
        """The candidates that are left after the stages that need no other model."""
        options, apply = self._options, self._funnel.apply
        keep = self._funnel.start(indices_QK)
        keep = apply("known positive of the query", keep, not_listed(indices_QK, self._query[rows], self._known))
        keep = apply("the query itself", keep, not_the_query(indices_QK, self._own[rows]))
        if self._keeps:
            keep = apply("already a negative of the row", keep, not_listed(indices_QK, rows, self._had))
        if options.skip_top:
            keep = apply(f"the {options.skip_top} most similar", keep, below_the_top(keep, options.skip_top))
        if options.max_score is not None:
            limit_Q = np.full(len(rows), options.max_score, np.float32)
            keep = apply(f"score of {options.max_score:g} or more", keep, below_limit(scores_QK, limit_Q))
        if options.margin is not None:
            limit_Q = lowest_Q - np.float32(options.margin)
            keep = apply(f"less than {options.margin:g} below the positive", keep, below_limit(scores_QK, limit_Q))
        limit_Q = share_limit(lowest_Q, options.max_share)
        return apply(f"{options.max_share:.0%} of the positive's score or more", keep, below_limit(scores_QK, limit_Q))

    def _lowest_positive(self, rows: Indices, queries: Vectors) -> Scores:
        """The lowest score among each row's positives.

        A row trains with each of its positives in turn, against the same negatives. So a candidate that scores like the
        weakest positive may be an answer.
        """
        places, offsets = self._table.positive_hashes.positions(rows)
        owners = np.repeat(np.arange(len(rows)), np.diff(offsets))
        scores = similarities(queries, owners, self._vectors, self._candidates.positives[places])
        self._positive_scores[places] = scores
        return np.asarray(np.minimum.reduceat(scores, offsets[:-1]))

    def _veto(
        self, reranker: PairScorer, rows: Indices, indices_QK: Indices, keep_QK: Mask, columns_QK: Indices
    ) -> Mask:
        """The candidates that the reranker leaves. It scores only candidates that would be chosen."""
        examples = [self._table[int(row)] for row in rows]
        positives = [(example.query, text) for example in examples for text in example.positives]
        starts = np.cumsum([0, *(len(example.positives) for example in examples[:-1])])
        limit_Q = np.minimum.reduceat(reranker.score(positives), starts) - np.float32(self._options.reranker_margin)
        left_QK, scored_QK = keep_QK.copy(), np.zeros_like(keep_QK)
        while True:
            row, column = np.nonzero(in_order(left_QK, columns_QK, self._options.negatives) & ~scored_QK)
            if not len(row):
                return left_QK
            numbers = indices_QK[row, column].tolist()
            pairs = [(examples[q].query, self._candidates[i]) for q, i in zip(row.tolist(), numbers, strict=True)]
            left_QK[row, column] = reranker.score(pairs) < limit_Q[row]
            scored_QK[row, column] = True


def _silent(_: int) -> None:
    """No progress to show."""
