"""What is wrong with the data, before any training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biencoder.data.files.beir import Collection
from biencoder.data.random_bits import splitmix64
from biencoder.data.table import ExampleTable, Ragged
from biencoder.data.text import text_hash

SAMPLED_TEXTS = 1000
TOLERATED_DUPLICATES = 0.01  # share of rows above which the audit warns
TOLERATED_TRUNCATION = 0.10  # share of texts above which the audit warns

WARN = "warn"


@dataclass(frozen=True)
class Leaks:
    """Training data that is also in the evaluation, text for text.

    Attributes:
        queries: rows whose query is also in the evaluation.
        passages: rows with a positive that answers a query of the evaluation.
        evaluation: the evaluation's description.
    """

    queries: int
    passages: int
    evaluation: str


@dataclass(frozen=True)
class Truncation:
    """How many texts are longer than the model will see, estimated on a sample.

    Attributes:
        queries: share (0 to 1) of the queries longer than ``query_max_len`` tokens.
        passages: share of the positives longer than ``passage_max_len`` tokens.
        query_max_len: tokens.
        passage_max_len: tokens.
        sample: how many queries, and as many positives, were measured.
    """

    queries: float
    passages: float
    query_max_len: int
    passage_max_len: int
    sample: int


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found in the training data.

    Attributes:
        examples: usable rows.
        files: files that the rows are from.
        skipped: how many bad rows of each kind were left out.
        bad_rows: messages on the first bad rows.
        distinct_queries: different query texts.
        duplicates: rows that repeat a pair of query and positive of an earlier row.
        contradictions: rows with a positive that is one of their own negatives.
        negative_counts: int64, how many rows have 0, 1, 2, … hard negatives.
        leaks: None without an evaluation.
        truncation: None without a tokenizer.
        data_sets: name and number of usable rows of each data set; empty if there is only one.
        empty_negatives: entries among the negatives that were empty and are left out alone.
    """

    examples: int
    files: int
    skipped: Mapping[str, int]
    bad_rows: tuple[str, ...]
    distinct_queries: int
    duplicates: int
    contradictions: int
    negative_counts: NDArray[np.int64]
    leaks: Leaks | None
    truncation: Truncation | None
    data_sets: tuple[tuple[str, int], ...] = ()
    empty_negatives: int = 0

    def short_groups(self, group_size: int) -> float:
        """Share (0 to 1) of the rows that have fewer hard negatives than a group of ``group_size`` has room for."""
        return float(self.negative_counts[: group_size - 1].sum() / self.examples)

    def rows(self, group_size: int) -> list[tuple[str, str, str]]:
        """The findings for people: what was found, how often, and ``warn`` if you should look at it."""
        found = [
            ("rows", f"{self.examples:,} in {self.files:,} file{'s' * (self.files > 1)}", ""),
            *((f"rows of {name}", f"{rows:,} ({rows / self.examples:.1%})", "") for name, rows in self.data_sets),
            ("distinct queries", f"{self.distinct_queries:,}", ""),
            self._skipped_row(),
            (
                "duplicate rows (query and positive)",
                self._count(self.duplicates),
                WARN * (self.duplicates > TOLERATED_DUPLICATES * self.examples),
            ),
            ("positive is also a negative", self._count(self.contradictions), WARN * (self.contradictions > 0)),
            self._group_row(group_size),
        ]
        if self.empty_negatives:
            found.append(("empty negatives left out", f"{self.empty_negatives:,}", ""))
        if self.truncation is not None:
            found += _truncation_rows(self.truncation)
        if self.leaks is not None:
            found += [
                ("query also in the evaluation", self._count(self.leaks.queries), WARN * (self.leaks.queries > 0)),
                (
                    "positive also answers an evaluation query",
                    self._count(self.leaks.passages),
                    WARN * (self.leaks.passages > 0),
                ),
            ]
        return found

    def _skipped_row(self) -> tuple[str, str, str]:
        total = sum(self.skipped.values())
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.skipped.items(), key=lambda kv: -kv[1]))
        return "bad rows left out", f"{total:,} ({kinds})" if total else "0", WARN * (total > 0)

    def _group_row(self, group_size: int) -> tuple[str, str, str]:
        label = f"fewer than {group_size - 1} hard negatives"
        most = len(self.negative_counts) - 1
        if group_size == 1:
            return "hard negatives", "not used (group size 1)", ""
        if most == 0:
            return "hard negatives", "none; the other passages of a batch serve as negatives", ""
        short = self.short_groups(group_size)
        if short == 0:
            return label, "0 rows", ""
        return label, f"{short:.1%} of rows, whose groups are smaller; the most is {most:,}", WARN * (short > 0.5)

    def _count(self, rows: int) -> str:
        return f"{rows:,} rows ({rows / self.examples:.1%})" if rows else "0"


def _truncation_rows(cut: Truncation) -> list[tuple[str, str, str]]:
    sides = (("queries", cut.queries, cut.query_max_len), ("passages", cut.passages, cut.passage_max_len))
    return [
        (
            f"{side} cut at {limit} tokens",
            f"{share:.1%} (of {cut.sample:,} sampled)",
            WARN * (share > TOLERATED_TRUNCATION),
        )
        for side, share, limit in sides
    ]


def audit(
    table: ExampleTable,
    collection: Collection | None = None,
    lengths: Callable[[list[str]], NDArray[np.int64]] | None = None,
    query_max_len: int = 64,
    passage_max_len: int = 256,
    names: Sequence[str] = (),
) -> Audit:
    """Count what is wrong with the training data.

    Texts are compared exactly, by hash.

    Args:
        table: the training data.
        collection: the evaluation to check for leaks of training data.
        lengths: counts the tokens of each text, with special tokens and *without* truncation.
        query_max_len: training cuts queries to this many tokens.
        passage_max_len: training cuts passages to this many tokens.
        names: names of the table's data sets.
    """
    counts = np.bincount(table.data_set, minlength=len(names)).tolist()
    return Audit(
        examples=len(table),
        files=len(table.files),
        skipped=table.skipped,
        bad_rows=table.bad_rows,
        distinct_queries=len(np.unique(table.query_hashes)),
        duplicates=_duplicates(table),
        contradictions=_contradictions(table),
        negative_counts=np.bincount(table.negative_hashes.lengths).astype(np.int64),
        leaks=None if collection is None else _leaks(table, collection),
        truncation=None if lengths is None else _truncation(table, lengths, query_max_len, passage_max_len),
        data_sets=tuple(zip(names, counts, strict=True)) if len(names) > 1 else (),
        empty_negatives=table.empty_negatives,
    )


def _duplicates(table: ExampleTable) -> int:
    owners = table.positive_hashes.owners()
    pairs = splitmix64(table.query_hashes[owners]) ^ table.positive_hashes.values
    _, first, pair = np.unique(pairs, return_index=True, return_inverse=True)
    return len(np.unique(owners[owners[first][pair] < owners]))


def _contradictions(table: ExampleTable) -> int:
    positives, negatives = (
        splitmix64(ragged.owners().astype(np.uint64)) ^ ragged.values
        for ragged in (table.positive_hashes, table.negative_hashes)
    )
    return _rows_with(table.positive_hashes, np.isin(positives, negatives))


def _leaks(table: ExampleTable, collection: Collection) -> Leaks:
    queries = _hashes(collection.query_texts)
    relevant = {document for grades in collection.qrels.values() for document, grade in grades.items() if grade > 0}
    pairs = zip(collection.corpus_ids, collection.corpus_texts, strict=True)
    answers = _hashes([text for document, text in pairs if document in relevant])
    return Leaks(
        queries=int(np.isin(table.query_hashes, queries).sum()),
        passages=_rows_with(table.positive_hashes, np.isin(table.positive_hashes.values, answers)),
        evaluation=collection.description,
    )


def _rows_with(ragged: Ragged, marked: NDArray[np.bool_]) -> int:
    """How many lists hold a marked value."""
    return len(np.unique(ragged.owners()[marked]))


def _hashes(texts: list[str]) -> NDArray[np.uint64]:
    return np.fromiter(map(text_hash, texts), dtype=np.uint64, count=len(texts))


def _truncation(
    table: ExampleTable,
    lengths: Callable[[list[str]], NDArray[np.int64]],
    query_max_len: int,
    passage_max_len: int,
) -> Truncation:
    rows = np.argsort(splitmix64(np.arange(len(table), dtype=np.uint64)), kind="stable")[:SAMPLED_TEXTS]
    examples = [table[int(row)] for row in rows]
    queries = lengths([example.query for example in examples])
    passages = lengths([example.positives[0] for example in examples])
    return Truncation(
        queries=float((queries > query_max_len).mean()),
        passages=float((passages > passage_max_len).mean()),
        query_max_len=query_max_len,
        passage_max_len=passage_max_len,
        sample=len(examples),
    )
