"""How well a model finds the relevant documents of a collection."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from biencoder.data.files.beir import Collection
from biencoder.errors import UserError
from biencoder.retrieval.findings import Findings, RelevantScores, findings_of
from biencoder.retrieval.metrics import Run, evaluate_run
from biencoder.retrieval.search import blocks, nothing
from biencoder.retrieval.text_encoder import Advance, TextEncoder, finite, shifted
from biencoder.retrieval.views import views_of

DECIDING = "ndcg@10"
WHOLE = ""  # the ranking by everything that a model makes of a text


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on a collection.

    Attributes:
        metrics: each measure's mean over the queries, ``ndcg@10`` and so on.
        per_query: for each measure, the value of each query.
        queries: queries evaluated: those with at least one relevant document.
        documents: documents searched.
        description: one sentence about the collection, for people.
        findings: what was found for each query; None unless it was asked for.
    """

    metrics: dict[str, float]
    per_query: dict[str, dict[str, float]]
    queries: int
    documents: int
    description: str
    findings: Findings | None = None

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "Evaluation":
        """What ``asdict`` gave, after a stay in a file; a file of an older version holds no findings."""
        return cls(**saved | {"findings": Findings.restored(saved.get("findings"))})

    def to_json(self) -> dict[str, Any]:
        """What ``eval.json`` holds: all but what is known of each query."""
        return {
            "metrics": self.metrics,
            "queries": self.queries,
            "documents": self.documents,
            "description": self.description,
        }


def evaluate(
    encoder: TextEncoder,
    collection: Collection,
    *,
    k: int = 100,
    dims: Sequence[int] = (),
    progress: Advance | None = None,
    with_findings: bool = False,
) -> Evaluation:
    """Encode a collection, search it exactly and score the result.

    Args:
        encoder: the model.
        collection: documents, queries and judgements.
        k: documents to retrieve for each query. Measures with a cut deeper than ``k`` see ``k`` documents.
        dims: for each of these, cut the vectors to so many dimensions and add their :data:`DECIDING` as a measure.
        progress: called with the number of texts encoded so far; :func:`texts_to_encode` gives the total.
        with_findings: also keep what was found for each query, from the same pass.

    Raises:
        UserError: no query has a relevant document, or the model's vectors are not finite.
    """
    relevant = RelevantScores(collection, _answerable(collection)[0]) if with_findings else None
    found = retrieve(encoder, collection, k=k, dims=dims, progress=progress, relevant=relevant)
    evaluation = score(found[WHOLE], collection)
    if relevant is not None:
        evaluation = replace(evaluation, findings=findings_of(found[WHOLE], relevant.best, collection))
    for view, run_of_view in found.items():
        if view != WHOLE:
            part, name = score(run_of_view, collection), f"{DECIDING}, {view}"
            evaluation.metrics[name] = part.metrics[DECIDING]
            evaluation.per_query[name] = part.per_query[DECIDING]
    return evaluation


def retrieve(
    encoder: TextEncoder,
    collection: Collection,
    *,
    k: int = 100,
    dims: Sequence[int] = (),
    progress: Advance | None = None,
    relevant: RelevantScores | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """The ``k`` best documents, with scores, for each query that has a relevant one; see :func:`evaluate`.

    Documents are encoded and searched block by block: their vectors are never all in memory.

    Args:
        encoder: the model.
        collection: documents, queries and judgements.
        k: documents to retrieve for each query.
        dims: also rank by vectors that are cut to so many dimensions.
        progress: see :func:`evaluate`.
        relevant: sees what is compared.

    Returns:
        What was found by everything that the model makes of a text, under :data:`WHOLE`, and by parts of it, under
        their names: by vectors of fewer dimensions, by each of several heads, and by sums of some.
    """
    query_ids, query_texts = _answerable(collection)
    if not query_ids:
        raise UserError(f"{collection.description}: no query has a relevant document (a judgement above 0)")
    queries = finite(encoder.represent_queries(query_texts, progress), "query")
    views = views_of(encoder, queries, dims)
    best = [nothing(len(queries)) for _ in (WHOLE, *views.names)]
    for start, stop in blocks(len(collection.corpus_ids), encoder.text_size):
        documents = encoder.represent_passages(
            collection.corpus_texts[start:stop], shifted(progress, len(queries) + start)
        )
        finite(documents, "document", start)
        if relevant is not None:
            relevant.see(queries, documents, start)
        best = views.extend(best, documents, start, k + collection.ignores_itself)
    return {
        name: {
            query: _by_id(collection, query, scores, indices, k)
            for query, scores, indices in zip(query_ids, found[0].tolist(), found[1].tolist(), strict=True)
        }
        for name, found in zip((WHOLE, *views.names), best, strict=True)
    }


def _by_id(collection: Collection, query: str, scores: list[float], indices: list[int], k: int) -> dict[str, float]:
    """Ids and scores of the ``k`` best documents of a query, best first."""
    ids = collection.corpus_ids
    found = {ids[i]: value for i, value in zip(indices, scores, strict=True)}
    if collection.ignores_itself:
        found.pop(query, None)
    return dict(list(found.items())[:k])


def texts_to_encode(collection: Collection) -> int:
    """How many texts an evaluation encodes."""
    return len(_answerable(collection)[0]) + len(collection.corpus_ids)


def score(found: Run, collection: Collection) -> Evaluation:
    """Score retrieved documents against the collection's judgements.

    Queries without any relevant document are left out; the description says how many.
    """
    scores = evaluate_run(collection.qrels, found)
    description = collection.description
    if scores.without_relevant:
        description += f"; {scores.without_relevant:,} queries without a relevant document do not count"
    return Evaluation(
        metrics=scores.means,
        per_query={
            measure: dict(zip(scores.query_ids, values.tolist(), strict=True))
            for measure, values in scores.per_query.items()
        },
        queries=len(scores.query_ids),
        documents=len(collection.corpus_ids),
        description=description,
    )


def _answerable(collection: Collection) -> tuple[list[str], list[str]]:
    """Ids and texts of the queries that have a relevant document."""
    wanted = {query for query, grades in collection.qrels.items() if any(grade > 0 for grade in grades.values())}
    pairs = zip(collection.query_ids, collection.query_texts, strict=True)
    judged = [(query, text) for query, text in pairs if query in wanted]
    return [query for query, _ in judged], [text for _, text in judged]
