"""Which queries one model answers worse or better than another: the rankings of both, query by query."""

from collections.abc import Mapping
from dataclasses import dataclass

from biencoder.data.files.beir import Collection
from biencoder.retrieval.evaluate import DECIDING
from biencoder.retrieval.metrics import Run, evaluate_run, ranking


@dataclass(frozen=True)
class RelevantDocument:
    """Where two models rank a relevant document; None if it is not among those that they retrieved.

    Attributes:
        id: of the document.
        grade: how relevant it is, above 0.
        before: its rank by the first model, from 1.
        after: its rank by the second.
    """

    id: str
    grade: int
    before: int | None
    after: int | None


@dataclass(frozen=True)
class QueryChange:
    """A query and what two models find for it.

    Attributes:
        query_id: its id.
        before: :data:`DECIDING` by the first model, from 0 to 1.
        after: the same by the second.
        relevant: the relevant documents, those whose rank changed most first.
        found_before: ids of the documents that the first model retrieved, best first.
        found_after: the same of the second.
    """

    query_id: str
    before: float
    after: float
    relevant: list[RelevantDocument]
    found_before: list[str]
    found_after: list[str]

    @property
    def difference(self) -> float:
        """``after - before``."""
        return self.after - self.before

    @property
    def moved(self) -> float:
        """How much nearer to the top the relevant documents came: the sum of differences of their reciprocal ranks."""
        return sum(_reciprocal(each.after) - _reciprocal(each.before) for each in self.relevant)


def query_changes(before: Run, after: Run, collection: Collection) -> list[QueryChange]:
    """Every query with a relevant document, those that lost most first and those that won most last.

    They are in the order of their difference in :data:`DECIDING`. Queries of equal difference are in the order of how
    much nearer to the top their relevant documents came.

    Args:
        before: the first model's retrieved documents and scores, for each query.
        after: the second model's.
        collection: the judgements.
    """
    scores = [evaluate_run(collection.qrels, run, (DECIDING,)) for run in (before, after)]
    values_before, values_after = (each.per_query[DECIDING].tolist() for each in scores)
    changes = []
    for query, first, second in zip(scores[0].query_ids, values_before, values_after, strict=True):
        found_before, found_after = (ranking(run.get(query, {})) for run in (before, after))
        relevant = _relevant(collection.qrels[query], found_before, found_after)
        changes.append(QueryChange(query, first, second, relevant, found_before, found_after))
    return sorted(changes, key=lambda each: (each.difference, each.moved, each.query_id))


def _relevant(judged: Mapping[str, int], before: list[str], after: list[str]) -> list[RelevantDocument]:
    ranks = [{document: rank for rank, document in enumerate(found, 1)} for found in (before, after)]
    documents = [
        RelevantDocument(document, grade, *(rank.get(document) for rank in ranks))
        for document, grade in judged.items()
        if grade > 0
    ]
    return sorted(documents, key=lambda each: -abs(_reciprocal(each.after) - _reciprocal(each.before)))


def _reciprocal(rank: int | None) -> float:
    return 0.0 if rank is None else 1 / rank
