"""``biencoder diff``: shows the queries that one model answers worse or better than another."""

from collections.abc import Iterable
from typing import Any

import orjson

from biencoder.commands.evaluate import found_by
from biencoder.config import DiffConfig
from biencoder.data.files.beir import Collection, load_collection
from biencoder.data.rewrite import write_lines
from biencoder.distributed import shares_work
from biencoder.errors import UserError
from biencoder.model.encoder import load_with
from biencoder.model.parallel.sharing import is_first
from biencoder.retrieval.comparing.changes import QueryChange, RelevantDocument, query_changes
from biencoder.retrieval.comparing.comparison import HOW_COMPARED, compare, deciding_of, verdict
from biencoder.retrieval.evaluate import DECIDING, WHOLE, score
from biencoder.retrieval.metrics import Run
from biencoder.terminal import say, shorten

WRITTEN = 10  # documents of each ranking that the output holds
RELEVANT_SHOWN = 3  # relevant documents of a query


@shares_work
def run(config: DiffConfig) -> None:
    """The command: print the queries that lost and won most, and write all of them if you asked for it."""
    if config.output is not None and config.output.is_dir():
        raise UserError(f"--output {config.output}: is a folder; name a file")
    collection = load_collection(config.data, config.split)
    encoders = [load_with(config, model, "MODEL") for model in config.models]  # both, before one takes its time
    before, after = (found_by(encoder, collection, config.top_k)[WHOLE] for encoder in encoders)
    changes = query_changes(before, after, collection)
    _say_summary(config, collection, before, after, changes)
    texts = dict(zip(collection.corpus_ids, collection.corpus_texts, strict=True))
    queries = dict(zip(collection.query_ids, collection.query_texts, strict=True))
    lost = [each for each in changes if each.difference < 0][: config.top]
    won = [each for each in reversed(changes) if each.difference > 0][: config.top]
    for heading, some in (("lost most", lost), ("won most", won)):
        if some:
            say(f"\nQueries that {heading}, with their change in {DECIDING}:")
        for change in some:
            _show(change, queries[change.query_id], texts)
    if config.output is not None and is_first():
        with write_lines(config.output) as write:
            for change in changes:
                write(orjson.dumps(_as_row(change, queries[change.query_id], texts)) + b"\n")
        say(f"\n{config.output}: all {len(changes):,} queries, those that lost most first")


def _say_summary(
    config: DiffConfig, collection: Collection, before: Run, after: Run, changes: list[QueryChange]
) -> None:
    evaluations = [score(found, collection) for found in (before, after)]
    comparisons = compare(*evaluations)
    deciding = deciding_of(comparisons)
    first, second = config.models
    say(f"{first} and {second} on {evaluations[0].description}")
    say(f"{DECIDING} {deciding.before:.4f} -> {deciding.after:.4f}. {verdict(comparisons, second)}")
    say(HOW_COMPARED)
    lost, won = (sum(sign * each.difference > 0 for each in changes) for sign in (-1, 1))
    say(f"{lost:,} queries lost, {won:,} won, and {len(changes) - lost - won:,} have the same {DECIDING}")


def _show(change: QueryChange, query: str, texts: dict[str, str]) -> None:
    say(f"\n{change.difference:+.4f}  {shorten(query)}")
    for each in change.relevant[:RELEVANT_SHOWN]:
        say(f"    relevant, rank {_ranks(each)}: {shorten(texts[each.id])}")
    if (more := len(change.relevant) - RELEVANT_SHOWN) > 0:
        say(f"    and {more:,} more relevant documents")
    relevant = {each.id for each in change.relevant}
    for when, found in (("before", change.found_before), ("after", change.found_after)):
        if found and found[0] not in relevant:
            say(f"    first {when}: {shorten(texts[found[0]])}")


def _ranks(document: RelevantDocument) -> str:
    return " -> ".join("none" if rank is None else f"{rank:,}" for rank in (document.before, document.after))


def _as_row(change: QueryChange, query: str, texts: dict[str, str]) -> dict[str, Any]:
    """What the output holds of a query."""

    def documents(ids: Iterable[str]) -> list[dict[str, str]]:
        return [{"id": each, "text": texts[each]} for each in ids]

    return {
        "query_id": change.query_id,
        "query": query,
        "before": change.before,
        "after": change.after,
        "difference": change.difference,
        "relevant": [
            {"id": r.id, "grade": r.grade, "rank_before": r.before, "rank_after": r.after, "text": texts[r.id]}
            for r in change.relevant
        ],
        "found_before": documents(change.found_before[:WRITTEN]),
        "found_after": documents(change.found_after[:WRITTEN]),
    }
