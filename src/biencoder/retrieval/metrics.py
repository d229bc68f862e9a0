"""Retrieval measures with the exact semantics of trec_eval.

Documents are ranked by score, highest first; like trec_eval, this compares scores as float32. Equal scores are ranked
by document id, largest first. (RR@10 of ir_measures is MS MARCO's script, which puts the smallest id first.) A document
without a judgement is not relevant; a judgement of 1 or more is relevant. Queries that the run misses count 0. Queries
without any relevant judged document have no meaningful value. Values and means leave them out, and their number is
reported (trec_eval would count each as 0).

Shapes: Q queries, K ranks, J judged documents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]

MEASURES = ("ndcg@10", "mrr@10", "recall@1", "recall@5", "recall@10", "recall@100", "map@100")


@dataclass(frozen=True)
class Scores:
    """How good a run is.

    Attributes:
        query_ids: the queries with at least one relevant judged document, sorted.
        per_query: for each measure, its values, ``[Q]`` float64 in the order of ``query_ids``.
        without_relevant: judged queries that were left out because nothing relevant is known for them.
    """

    query_ids: tuple[str, ...]
    per_query: dict[str, np.ndarray]
    without_relevant: int

    @property
    def means(self) -> dict[str, float]:
        """Each measure's mean over the queries (NaN if there are no queries)."""
        return {name: float(values.mean()) if len(values) else float("nan") for name, values in self.per_query.items()}


def evaluate_run(qrels: Qrels, run: Run, measures: Sequence[str] = MEASURES) -> Scores:
    """Score a run against judgements.

    Args:
        qrels: for each query, the judged documents and their relevance; 0 or less is not relevant.
        run: for each query, the retrieved documents and their scores; queries without judgements are ignored.
        measures: names like ``ndcg@10``, of the kinds in :data:`FORMULAS`.

    Raises:
        ValueError: an unknown measure, or a score that is not a number.
    """
    parsed = {name: _parse(name) for name in measures}
    depth = max((cut for _, cut in parsed.values()), default=0)
    query_ids = tuple(sorted(query for query, judged in qrels.items() if any(r > 0 for r in judged.values())))
    gains_QK = np.zeros((len(query_ids), depth))
    ideal_QJ = np.zeros((len(query_ids), max((len(qrels[query]) for query in query_ids), default=0)))
    for row, query in enumerate(query_ids):
        judged = qrels[query]
        gains = [max(judged.get(document, 0), 0) for document in ranking(run.get(query, {}))[:depth]]
        gains_QK[row, : len(gains)] = gains
        ideal_QJ[row, : len(judged)] = sorted((max(r, 0) for r in judged.values()), reverse=True)
    values = {name: formula(gains_QK, ideal_QJ, cut) for name, (formula, cut) in parsed.items()}
    return Scores(query_ids, values, without_relevant=len(qrels) - len(query_ids))


def ranking(scores: Mapping[str, float]) -> list[str]:
    """Document ids as trec_eval ranks them: float32 score descending, then id descending.

    Raises:
        ValueError: a score is not a number.
    """
    single = np.fromiter(scores.values(), dtype=np.float64, count=len(scores)).astype(np.float32)
    if np.isnan(single).any():
        document = list(scores)[int(np.isnan(single).argmax())]
        raise ValueError(f"the score of document {document!r} is not a number")
    return [document for _, document in sorted(zip(single.tolist(), scores, strict=True), reverse=True)]


def ndcg(gains_QK: np.ndarray, ideal_QJ: np.ndarray, cut: int) -> np.ndarray:
    """Normalised discounted cumulative gain with linear gains (Järvelin and Kekäläinen 2002, trec_eval's ndcg_cut)."""
    share: np.ndarray = _dcg(gains_QK, cut) / _dcg(ideal_QJ, cut)
    return share


def mrr(gains_QK: np.ndarray, ideal_QJ: np.ndarray, cut: int) -> np.ndarray:  # noqa: ARG001 - one signature for all
    """One over the rank of the first relevant document; 0 if none is in the first ``cut`` ranks."""
    relevant = gains_QK[:, :cut] > 0
    return np.where(relevant.any(axis=1), 1.0 / (relevant.argmax(axis=1) + 1), 0.0)


def recall(gains_QK: np.ndarray, ideal_QJ: np.ndarray, cut: int) -> np.ndarray:
    """Share of the relevant documents that are in the first ``cut`` ranks."""
    share: np.ndarray = (gains_QK[:, :cut] > 0).sum(axis=1) / (ideal_QJ > 0).sum(axis=1)
    return share


def average_precision(gains_QK: np.ndarray, ideal_QJ: np.ndarray, cut: int) -> np.ndarray:
    """Precision at the rank of each relevant document, over all relevant documents (trec_eval's map_cut)."""
    relevant = gains_QK[:, :cut] > 0
    precision = relevant.cumsum(axis=1) / np.arange(1, relevant.shape[1] + 1)
    mean: np.ndarray = (precision * relevant).sum(axis=1) / (ideal_QJ > 0).sum(axis=1)
    return mean


FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "ndcg": ndcg,
    "mrr": mrr,
    "recall": recall,
    "map": average_precision,
}


def _dcg(gains: np.ndarray, cut: int) -> np.ndarray:
    top = gains[:, :cut]
    total: np.ndarray = top @ (1.0 / np.log2(np.arange(2, top.shape[1] + 2)))
    return total


def _parse(name: str) -> tuple[Callable[[np.ndarray, np.ndarray, int], np.ndarray], int]:
    kind, _, cut = name.partition("@")
    if kind not in FORMULAS or not cut.isdecimal() or int(cut) < 1:
        raise ValueError(f"unknown measure {name!r}: {', '.join(FORMULAS)} are known, each with a cut, as in ndcg@10")
    return FORMULAS[kind], int(cut)
