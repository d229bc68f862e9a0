"""What a model finds for each query, as far as a report needs it to compare two models query by query.

Shapes: Q queries, D dimensions, B documents in a block, P pairs of a query and one of its relevant documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from biencoder.data.files.beir import Collection
from biencoder.model.representations.ragged import Vectors
from biencoder.retrieval.continued import TAIL, expected_ndcg
from biencoder.retrieval.metrics import Run, ranking
from biencoder.retrieval.search import score_pairs

RANKED = 10  # documents of a ranking that are kept
RANKED_QUERIES = 2000  # whose rankings are kept; a checkpoint holds them for two models
PAIRS = 16_384  # scored at a time: 50 MB of vectors with 384 dimensions
DIGITS = 5  # of a score that are kept: people read three


@dataclass(frozen=True)
class Findings:
    """What a model finds for the queries of a collection; plain values, because checkpoints hold it as JSON.

    Attributes:
        positive: query id -> the best score of a relevant document, wherever it is ranked.
        negative: query id -> the best score of any other document. A query is missing here if there is none, or if
            none is among the documents retrieved.
        documents: query id -> ids of its :data:`RANKED` best documents, best first; for :data:`RANKED_QUERIES` queries.
        scores: query id -> the scores of those documents.
        beyond: query id -> the expected nDCG@10 among more documents, see
            :mod:`~biencoder.retrieval.continued`.
    """

    positive: dict[str, float] = field(default_factory=dict)
    negative: dict[str, float] = field(default_factory=dict)
    documents: dict[str, list[str]] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    beyond: dict[str, float] = field(default_factory=dict)

    @classmethod
    def restored(cls, saved: dict[str, Any] | None) -> "Findings | None":
        """What ``asdict`` gave, after a stay in a file; None stays None."""
        return None if saved is None else cls(**saved)


class RelevantScores:
    """The best score of a relevant document for each query, while the documents come by in blocks.

    A search keeps the best documents only, and the right answer need not be among them.

    Args:
        collection: documents and judgements.
        query_ids: the queries, in the order of their vectors.
    """

    def __init__(self, collection: Collection, query_ids: Sequence[str]) -> None:
        relevant = [[d for d, grade in collection.qrels[query].items() if grade > 0] for query in query_ids]
        wanted = {document for documents in relevant for document in documents}
        places = {document: i for i, document in enumerate(collection.corpus_ids) if document in wanted}
        pairs = sorted((places[document], row) for row, documents in enumerate(relevant) for document in documents)
        self._documents, self._queries = np.array(pairs, np.int64).reshape(-1, 2).T
        self.best = np.full(len(query_ids), -np.inf, np.float32)

    def see(self, queries: Vectors, block: Vectors, start: int) -> None:
        """Score the relevant documents of a block.

        Args:
            queries: of the Q queries.
            block: of the B documents ``start``, ``start + 1``, and so on.
            start: index of the block's first document.
        """
        first, last = np.searchsorted(self._documents, (start, start + len(block))).tolist()
        for at in range(first, last, PAIRS):
            pairs = slice(at, min(at + PAIRS, last))
            rows = self._queries[pairs]
            scores_P = score_pairs(queries[rows], block[self._documents[pairs] - start])
            np.maximum.at(self.best, rows, scores_P)


def findings_of(found: Run, best_relevant: np.ndarray, collection: Collection) -> Findings:
    """What a report needs of the retrieved documents.

    Args:
        found: the documents retrieved and their scores, for each query.
        best_relevant: ``[Q]`` in the order of ``found``, from :class:`RelevantScores`.
        collection: the judgements.
    """
    findings = Findings()
    for (query, scores), best in zip(found.items(), best_relevant.tolist(), strict=True):
        judged, ranked = collection.qrels[query], ranking(scores)
        findings.positive[query] = round(best, DIGITS)
        others = [scores[document] for document in ranked if judged.get(document, 0) <= 0]
        if others:
            findings.negative[query] = round(others[0], DIGITS)
        wrong = len(collection.corpus_ids) - sum(grade > 0 for grade in judged.values())
        findings.beyond[query] = expected_ndcg(best, others[: TAIL + 1], wrong)
        if len(findings.documents) < RANKED_QUERIES:
            findings.documents[query] = ranked[:RANKED]
            findings.scores[query] = [round(scores[document], DIGITS) for document in ranked[:RANKED]]
    return findings
