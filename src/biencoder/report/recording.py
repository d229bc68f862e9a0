"""The record of a run: the figures, queries and passages that its report shows."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata

import numpy as np

from biencoder.data.audit import Audit
from biencoder.data.files.beir import Collection
from biencoder.report.record import (
    Answer,
    Bounds,
    Change,
    Changes,
    Cut,
    Finding,
    Means,
    Passage,
    Record,
    Scores,
    Similarity,
)
from biencoder.report.training import Outcome
from biencoder.retrieval.comparing.changes import QueryChange, query_changes
from biencoder.retrieval.comparing.significance import bootstrap_interval
from biencoder.retrieval.evaluate import Evaluation
from biencoder.retrieval.findings import RANKED, Findings
from biencoder.terminal import shorten

SHOWN_QUERIES = 10  # that won most, and that lost most
SHOWN_PASSAGES = 5  # of each ranking
SHOWN_ANSWERS = 3  # relevant documents of a query
TEXT = 300  # characters of a query or a passage
BINS = 40


@dataclass(frozen=True)
class ModelFacts:
    """What the record says of the model and of the machine; see :class:`Record`."""

    dim: int
    parameters: int
    max_length: int
    device: str
    processes: int = 1


def record_of(outcome: Outcome, model: ModelFacts, audit: Audit, collection: Collection) -> Record:
    """The record of a run.

    Args:
        outcome: of the run.
        model: that was saved.
        audit: of the training data.
        collection: that the model was evaluated on.
    """
    before, after = outcome.before.findings, outcome.after.findings
    both = None if before is None or after is None else (before, after)
    rows = audit.rows(outcome.config.group_size)
    return Record(
        biencoder=_version(),
        rows=outcome.rows,
        steps=outcome.steps,
        **dataclasses.asdict(model),
        audit=[Finding(what, found, bool(flag)) for what, found, flag in rows],
        cut=_cut(audit),
        means=_means(outcome.before, outcome.after),
        kept=outcome.kept.sentences(),
        similarity=both and _similarity(*both),
        changes=both and _changes(*both, collection),
    )


def _version() -> str:
    try:
        return metadata.version("biencoder")
    except metadata.PackageNotFoundError:
        return "unknown"  # the sources are on the path, and nobody installed them


def _cut(audit: Audit) -> list[Cut]:
    cut = audit.truncation
    if cut is None:
        return []
    return [
        Cut("queries", cut.queries, cut.query_max_len, cut.sample),
        Cut("passages", cut.passages, cut.passage_max_len, cut.sample),
    ]


def _means(before: Evaluation, after: Evaluation) -> dict[str, Means]:
    bounds = []
    for evaluation in (before, after):
        values = np.array([list(values.values()) for values in evaluation.per_query.values()]).T
        low, high = bootstrap_interval(np.zeros_like(values), values)
        bounds.append([Bounds(*pair) for pair in zip(low.tolist(), high.tolist(), strict=True)])
    return {name: Means(*pair) for name, *pair in zip(before.per_query, *bounds, strict=True)}


def _similarity(before: Findings, after: Findings) -> Similarity | None:
    """Histograms over the queries for which both scores are known."""
    pairs = [
        np.array([(findings.positive[query], score) for query, score in findings.negative.items()])
        for findings in (before, after)
    ]
    if not all(len(each) for each in pairs):
        return None
    values = np.concatenate([each.ravel() for each in pairs])
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    return Similarity([round(edge, 6) for edge in edges.tolist()], *(_scores(each, edges) for each in pairs))


def _scores(pairs: np.ndarray, edges: np.ndarray) -> Scores:
    positive, negative = pairs.T
    return Scores(
        positive=np.histogram(positive, edges)[0].tolist(),
        negative=np.histogram(negative, edges)[0].tolist(),
        mean_positive=float(positive.mean()),
        mean_negative=float(negative.mean()),
        first=float((positive > negative).mean()),
    )


def _changes(before: Findings, after: Findings, collection: Collection) -> Changes:
    judged = replace(collection, qrels={query: collection.qrels[query] for query in before.documents})
    changes = query_changes(_run(before), _run(after), judged)
    lost = [each for each in changes if each.difference < 0]
    won = [each for each in reversed(changes) if each.difference > 0]
    shown = (lost[:SHOWN_QUERIES], won[:SHOWN_QUERIES])
    texts = _texts(collection, [each for some in shown for each in some])
    lost_shown, won_shown = ([_change(each, before, after, texts) for each in some] for some in shown)
    return Changes(len(changes), len(lost), len(won), lost_shown, won_shown)


def _run(findings: Findings) -> dict[str, dict[str, float]]:
    """A run in the order of the rankings: their rounded scores may tie."""
    return {
        query: {document: float(RANKED - place) for place, document in enumerate(documents)}
        for query, documents in findings.documents.items()
    }


@dataclass(frozen=True)
class _Texts:
    """The texts that are shown, cut short, by id."""

    queries: dict[str, str] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)


def _texts(collection: Collection, changes: Sequence[QueryChange]) -> _Texts:
    queries = {each.query_id for each in changes}
    documents = {
        document
        for each in changes
        for document in (*each.found_before, *each.found_after, *(answer.id for answer in each.relevant))
    }

    def chosen(ids: list[str], texts: list[str], wanted: set[str]) -> dict[str, str]:
        pairs = zip(ids, texts, strict=True)
        return {each: shorten(text, TEXT) for each, text in pairs if each in wanted}

    return _Texts(
        chosen(collection.query_ids, collection.query_texts, queries),
        chosen(collection.corpus_ids, collection.corpus_texts, documents),
    )


def _change(change: QueryChange, before: Findings, after: Findings, texts: _Texts) -> Change:
    relevant = {each.id for each in change.relevant}

    def found(findings: Findings) -> list[Passage]:
        pairs = zip(findings.documents[change.query_id], findings.scores[change.query_id], strict=True)
        return [Passage(texts.documents[each], score, each in relevant) for each, score in pairs][:SHOWN_PASSAGES]

    answers = [Answer(texts.documents[each.id], each.before, each.after) for each in change.relevant[:SHOWN_ANSWERS]]
    return Change(
        query=texts.queries[change.query_id],
        before=change.before,
        after=change.after,
        answers=answers,
        more=len(change.relevant) - len(answers),
        found_before=found(before),
        found_after=found(after),
    )
