"""A held-out part of the training data, to evaluate on if there is no evaluation folder."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from biencoder.data.evaluation.held_out_corpus import (
    Nearest,
    held_out_corpus,
    in_seeded_order,
    passage_id,
    same_corpus,
)
from biencoder.data.files.beir import Collection
from biencoder.data.table import ExampleTable
from biencoder.errors import UserError

LEAST_QUERIES = 5  # distinct queries that the data must have for one to be held out
LARGEST_SHARE = 0.1  # of the distinct queries that are held out, and of the rows given up because they share a positive


class KeptCorpus(NamedTuple):
    """Which passages an earlier process chose for the same queries.

    Attributes:
        ids: of its passages.
        description: of the collection.
    """

    ids: list[str]
    description: str


@dataclass(frozen=True)
class HeldOut:
    """Training data in two parts.

    Attributes:
        train: the rows to train on.
        collection: the held-out queries, with all their positives and other passages of the data.
    """

    train: ExampleTable
    collection: Collection


def hold_out(
    table: ExampleTable,
    *,
    seed: int,
    queries: int,
    passages: int,
    rows: NDArray[np.bool_] | None = None,
    nearest: Nearest | None = None,
    kept: KeptCorpus | None = None,
) -> HeldOut:
    """Take queries out of the training data, with every row that has one of their texts or one of their positives.

    If queries share so many positives that training would lose more than a tenth of its rows, then rows that only share
    a positive stay in training, and the description says so. The choice depends on the texts and the seed, not on the
    order of the rows.

    Args:
        table: all training data.
        seed: decides which queries and other passages to pick.
        queries: how many distinct queries to hold out; at most a tenth of all.
        passages: size of the collection's corpus, see :func:`held_out_corpus`.
        rows: bool ``[n]``, the rows to take queries and passages from; None for all. Training gets the others, without
            the rows that have a held-out query or positive.
        nearest: see :func:`held_out_corpus`.
        kept: take these passages, if the data have them, and choose none.

    Raises:
        UserError: the data has fewer than 5 distinct queries, or nothing would be left to train on.
    """
    asked = table if rows is None else table.select(np.flatnonzero(rows))
    order = _in_order(table, asked, seed)
    picked = order[: max(1, min(queries, int(len(order) * LARGEST_SHARE)))]
    return _without(table, asked, picked, passages, seed, nearest, kept)


def hold_out_part(
    table: ExampleTable, *, seed: int, part: int, parts: int, passages: int, rows: NDArray[np.bool_] | None = None
) -> HeldOut:
    """:func:`hold_out` for one of several parts of the queries, which share none and are together all of them."""
    asked = table if rows is None else table.select(np.flatnonzero(rows))
    return _without(table, asked, _in_order(table, asked, seed)[part::parts], passages, seed)


def _in_order(table: ExampleTable, asked: ExampleTable, seed: int) -> NDArray[np.uint64]:
    """The hashes of the distinct queries, in a seeded order."""
    distinct = np.unique(asked.query_hashes)
    if len(distinct) < LEAST_QUERIES:
        of_those = "" if len(asked) == len(table) else " that an evaluation can be made of"
        found = f"{len(distinct)} distinct quer{'ies' if len(distinct) != 1 else 'y'}{of_those}"
        raise UserError(
            f"the training data has {found}. That is too few to hold one out for evaluation (at least "
            f"{LEAST_QUERIES}); name a BEIR folder with --eval-data"
        )
    return distinct[in_seeded_order(distinct, seed)]


def _without(
    table: ExampleTable,
    asked: ExampleTable,
    picked: NDArray[np.uint64],
    passages: int,
    seed: int,
    nearest: Nearest | None = None,
    kept: KeptCorpus | None = None,
) -> HeldOut:
    """The data without the queries of these hashes, and those queries to evaluate on."""
    held_rows = np.isin(table.query_hashes, picked)
    trained_rows, note = _rows_to_train_on(table, held_rows)
    if not trained_rows.any():
        raise UserError("no training data would be left after holding out queries; name a BEIR folder with --eval-data")

    held_asked = np.isin(asked.query_hashes, picked)
    ids = [f"q{value:016x}" for value in picked]
    qrels: dict[str, dict[str, int]] = {query_id: {} for query_id in ids}
    for row in np.flatnonzero(held_asked):
        start, stop = asked.positive_hashes.offsets[row : row + 2]
        judged = {passage_id(value): 1 for value in asked.positive_hashes.values[start:stop]}
        qrels[f"q{asked.query_hashes[row]:016x}"] |= judged
    distinct, first = np.unique(asked.query_hashes, return_index=True)
    texts = [asked[int(row)].query for row in first[np.searchsorted(distinct, picked)]]
    corpus = None if kept is None else same_corpus(asked, kept.ids)
    if kept is not None and corpus is not None:
        description = kept.description
    else:
        corpus, said = held_out_corpus(asked, texts, [qrels[query_id] for query_id in ids], passages, seed, nearest)
        given_up = f"{len(table) - int(trained_rows.sum()):,} of {len(table):,} rows"
        description = f"held-out: {len(ids):,} queries ({given_up}), {said}{note}"
    collection = Collection(list(corpus), list(corpus.values()), ids, texts, qrels, description)
    return HeldOut(table.select(np.flatnonzero(trained_rows)), collection)


def _rows_to_train_on(table: ExampleTable, held_rows: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], str]:
    """Which rows stay for training, bool ``[n]``, and a note about them for the reader."""
    owners = table.positive_hashes.owners()
    held_positives = table.positive_hashes.values[held_rows[owners]]
    shares = np.zeros(len(table), dtype=np.bool_)
    shares[owners[np.isin(table.positive_hashes.values, held_positives)]] = True
    shares &= ~held_rows
    if shares.sum() > LARGEST_SHARE * len(table):
        return ~held_rows, f"; {shares.sum():,} training rows share a positive with them"
    return ~held_rows & ~shares, ""
