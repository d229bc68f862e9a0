"""``biencoder evaluate``: how well a model finds the relevant documents of a collection, and whether it got better."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from biencoder.errors import UserError
from biencoder.files import atomic_write
from biencoder.retrieval.encode import Progress, TextEncoder, finite, load_encoder, shifted
from biencoder.retrieval.metrics import Run, evaluate_run, ranking
from biencoder.retrieval.search import blocks, extend, nothing
from biencoder.retrieval.significance import bootstrap_interval, paired_randomization_test

if TYPE_CHECKING:
    from biencoder.config import EvaluateConfig
    from biencoder.data.files.beir import Collection


DECIDING = "ndcg@10"
SIGNIFICANT = 0.05
ROUNDS = 10_000
HOW_COMPARED = (
    "p: paired randomisation test over queries; intervals: bootstrap over queries. "
    "Each measure by itself, not corrected for looking at several."
)
SIGNIFICANCE = {
    "p": "two-sided paired randomisation test over queries",
    "interval": "95% percentile bootstrap of the mean difference over queries",
    "rounds": ROUNDS,
    "correction": "none: each p-value is of one measure by itself",
}


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on a collection.

    Attributes:
        metrics: each measure's mean over the queries, ``ndcg@10`` and so on.
        per_query: for each measure the value of each query.
        queries: queries evaluated: those with at least one relevant document.
        documents: documents searched.
        description: one sentence on the collection, for people.
    """

    metrics: dict[str, float]
    per_query: dict[str, dict[str, float]]
    queries: int
    documents: int
    description: str

    def to_json(self) -> dict[str, Any]:
        """What ``eval.json`` holds: all but the values per query."""
        return {
            "metrics": self.metrics,
            "queries": self.queries,
            "documents": self.documents,
            "description": self.description,
        }


@dataclass(frozen=True)
class Comparison:
    """A measure before and after, on the same queries.

    Attributes:
        measure: its name.
        before: mean before.
        after: mean after.
        difference: ``after - before``.
        low: lower bound of the 95% bootstrap interval of the difference.
        high: its upper bound.
        p: two-sided p-value of the paired randomisation test.
    """

    measure: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float


def run(config: "EvaluateConfig") -> None:
    """The command: print the measures, write the JSON and the TREC run that were asked for."""
    from biencoder.data.files.beir import load_collection
    from biencoder.terminal import say, table

    for flag, path in (("--output", config.output), ("--run-file", config.run_file)):
        if path is not None and path.is_dir():
            raise UserError(f"{flag} {path}: is a folder, and must be a file")
    collection = load_collection(config.data, config.split)
    baseline = None if config.baseline is None else score(_found_by(config, config.baseline, collection), collection)
    found = _found_by(config, config.model, collection)
    evaluation = score(found, collection)
    content = {"model": str(config.model), **evaluation.to_json()}
    say(f"{config.model} on {evaluation.description}")
    if baseline is None:
        table([[name, f"{value:.4f}"] for name, value in evaluation.metrics.items()], ["measure", "value"])
    else:
        comparisons = compare(baseline, evaluation)
        table(comparison_rows(comparisons), ["measure", "baseline", "model", *COMPARISON_COLUMNS[3:]])
        say(f"baseline: {config.baseline}. {HOW_COMPARED}")
        say(verdict(comparisons, str(config.model)))
        content["baseline"] = {"model": str(config.baseline), **baseline.to_json()}
        content["comparison"] = comparison_json(comparisons)
        content["significance"] = SIGNIFICANCE
    if config.output is not None:
        with atomic_write(config.output) as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")
        say(f"{config.output}: the figures")
    if config.run_file is not None:
        write_trec_run(config.run_file, found, tag=Path(config.model).name)
        say(f"{config.run_file}: the TREC run")


def _found_by(config: "EvaluateConfig", model: str, collection: "Collection") -> dict[str, dict[str, float]]:
    from biencoder.terminal import Progress as ProgressLine

    encoder = load_encoder(replace(config, model=model))
    with ProgressLine(texts_to_encode(collection), "encode") as line:
        return retrieve(encoder, collection, k=config.top_k, progress=line.update)


def evaluate(
    encoder: TextEncoder,
    collection: "Collection",
    *,
    k: int = 100,
    dims: Sequence[int] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Encode a collection, search it exactly and score the result.

    Args:
        encoder: the model.
        collection: documents, queries and judgements.
        k: documents retrieved a query. Measures cut deeper than ``k`` see ``k`` documents.
        dims: adds :data:`DECIDING` of vectors cut to each of these dimensions, as a measure of its own.
        progress: called with the number of texts encoded, of :func:`texts_to_encode`.

    Raises:
        UserError: no query has a relevant document, or the model's vectors are not finite.
    """
    found, *found_cut = _retrieve(encoder, collection, (encoder.dim, *dims), k, progress)
    evaluation = score(found, collection)
    for dim, run_of_dim in zip(dims, found_cut, strict=True):
        cut, name = score(run_of_dim, collection), f"{DECIDING}, {dim} dimensions"
        evaluation.metrics[name] = cut.metrics[DECIDING]
        evaluation.per_query[name] = cut.per_query[DECIDING]
    return evaluation


def retrieve(
    encoder: TextEncoder, collection: "Collection", *, k: int = 100, progress: Progress | None = None
) -> dict[str, dict[str, float]]:
    """The ``k`` best documents, with scores, for each query that has a relevant one; see :func:`evaluate`.

    Documents are encoded and searched block by block: their vectors are never all in memory.
    """
    return _retrieve(encoder, collection, (encoder.dim,), k, progress)[0]


def _retrieve(
    encoder: TextEncoder, collection: "Collection", dims: Sequence[int], k: int, progress: Progress | None
) -> list[dict[str, dict[str, float]]]:
    """:func:`retrieve` by vectors cut to each of ``dims``, which are encoded once."""
    query_ids, query_texts = _answerable(collection)
    if not query_ids:
        raise UserError(f"{collection.description}: no query has a relevant document (a judgement above 0)")
    queries = finite(encoder.encode_queries(query_texts, progress), "query")
    queries_cut = [encoder.cut(queries, dim) for dim in dims]
    best = [nothing(len(queries)) for _ in dims]
    for start, stop in blocks(len(collection.corpus_ids), encoder.dim):
        documents = encoder.encode_passages(
            collection.corpus_texts[start:stop], shifted(progress, len(queries) + start)
        )
        finite(documents, "document", start)
        for place, dim in enumerate(dims):
            best[place] = extend(best[place], queries_cut[place], encoder.cut(documents, dim), start, k)
    ids = collection.corpus_ids
    return [
        {
            query: {ids[i]: value for i, value in zip(indices, scores, strict=True)}
            for query, scores, indices in zip(query_ids, of_dim[0].tolist(), of_dim[1].tolist(), strict=True)
        }
        for of_dim in best
    ]


def texts_to_encode(collection: "Collection") -> int:
    """How many texts an evaluation encodes."""
    return len(_answerable(collection)[0]) + len(collection.corpus_ids)


def score(found: Run, collection: "Collection") -> Evaluation:
    """Score retrieved documents against the collection's judgements.

    Queries without any relevant document are left out; the description says how many.
    """
    scores = evaluate_run(collection.qrels, found)
    description = collection.description
    if scores.without_relevant:
        description += f"; {scores.without_relevant:,} queries without a relevant document left out"
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


def compare(before: Evaluation, after: Evaluation, *, rounds: int = ROUNDS, seed: int = 0) -> list[Comparison]:
    """Each measure before and after, with a paired randomisation test and a bootstrap interval over queries.

    Raises:
        ValueError: the two are not evaluations of the same queries by the same measures.
    """
    first, *_ = before.per_query.values()
    query_ids = sorted(first)
    if list(before.per_query) != list(after.per_query) or query_ids != sorted(next(iter(after.per_query.values()))):
        raise ValueError("only evaluations of the same queries by the same measures can be compared")
    values_before, values_after = (
        np.array([[values[query] for values in each.per_query.values()] for query in query_ids])
        for each in (before, after)
    )
    p = paired_randomization_test(values_before, values_after, rounds=rounds, seed=seed)
    low, high = bootstrap_interval(values_before, values_after, rounds=rounds, seed=seed)
    return [
        Comparison(
            measure=measure,
            before=before.metrics[measure],
            after=after.metrics[measure],
            difference=after.metrics[measure] - before.metrics[measure],
            low=float(low[column]),
            high=float(high[column]),
            p=float(p[column]),
        )
        for column, measure in enumerate(before.per_query)
    ]


COMPARISON_COLUMNS = ["measure", "before", "after", "difference", "95% interval", "p"]


def comparison_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Comparisons as the text of a table's cells, under :data:`COMPARISON_COLUMNS`."""
    return [
        [
            each.measure,
            f"{each.before:.4f}",
            f"{each.after:.4f}",
            f"{each.difference:+.4f}",
            f"{each.low:+.4f} to {each.high:+.4f}",
            f"{each.p:.4f}",
        ]
        for each in comparisons
    ]


def verdict(comparisons: Sequence[Comparison], model: str) -> str:
    """One sentence by :data:`DECIDING`: better, worse, or not to be told apart.

    Args:
        comparisons: of a model with what it is compared with.
        model: what to call it, at the beginning of the sentence.
    """
    deciding = deciding_of(comparisons)
    if deciding.p >= SIGNIFICANT:
        return f"No significant change in {DECIDING} (p = {deciding.p:.3f}): this cannot tell the two models apart."
    direction = "better" if deciding.difference > 0 else "WORSE"
    return f"{model} is {direction}: {deciding.difference:+.4f} {DECIDING} (p = {deciding.p:.4f})."


def deciding_of(comparisons: Sequence[Comparison]) -> Comparison:
    """The comparison by :data:`DECIDING`."""
    return next(each for each in comparisons if each.measure == DECIDING)


def comparison_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Comparisons as ``eval.json`` holds them."""
    return [asdict(each) for each in comparisons]


def write_trec_run(path: Path, found: Run, *, tag: str = "biencoder") -> None:
    """Write a TREC run (``query Q0 document rank score tag``), ranked as trec_eval ranks it, whole or not at all.

    Raises:
        UserError: an id is empty or holds white space, which the format cannot tell from a column's end.
    """
    tag = "_".join(tag.split()) or "biencoder"
    with atomic_write(path) as file:
        for query, scores in found.items():
            for rank, document in enumerate(ranking(scores), 1):
                for identifier in (query, document):
                    if len(identifier.split()) != 1 or identifier.strip() != identifier:
                        raise UserError(f"{path}: id {identifier!r} holds white space; a TREC run cannot hold it")
                file.write(f"{query} Q0 {document} {rank} {scores[document]:.9g} {tag}\n")


def _answerable(collection: "Collection") -> tuple[list[str], list[str]]:
    """Ids and texts of the queries that have a relevant document."""
    wanted = {query for query, judged in collection.qrels.items() if any(r > 0 for r in judged.values())}
    pairs = zip(collection.query_ids, collection.query_texts, strict=True)
    kept = [(query, text) for query, text in pairs if query in wanted]
    return [query for query, _ in kept], [text for _, text in kept]
