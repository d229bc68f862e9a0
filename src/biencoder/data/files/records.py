"""A row of any supported file -> Example. Errors name the file and the line of the row."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biencoder.config.choices import SKIP, STOP
from biencoder.data.files.columns import RowError, find_columns
from biencoder.data.files.formats import Row, describe, find_files, read_rows
from biencoder.data.text import is_blank
from biencoder.errors import UserError

__all__ = ["BadRows", "Example", "find_files", "iter_examples", "read_examples", "read_examples_and_rows"]

_KEPT_MESSAGES = 20


@dataclass(frozen=True, slots=True)
class Example:
    """A query, the passages that are known to answer it, and the passages that are known not to.

    Attributes:
        query: not empty.
        positives: at least one, none empty.
        negatives: hard negatives, none empty; there may be none. Empty entries of the row are no negatives.
        positive_scores: the teacher's score of each positive, or None.
        negative_scores: the teacher's score of each negative, or None.
        prompt: the instruction to put before this query (``""`` for no instruction); None for the prompt of the run.
        similarity: how similar query and positive are, -1 to 1, if the row has two sentences and a score; else None.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    positive_scores: tuple[float, ...] | None
    negative_scores: tuple[float, ...] | None
    prompt: str | None
    similarity: float | None = None


@dataclass
class BadRows:
    """Counts of the rows that were left out, by kind, and the first messages about them.

    Attributes:
        kinds: how many rows of each kind.
        messages: about the first of them.
        empty_negatives: empty entries among the negatives of rows that were kept; they are left out alone.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    empty_negatives: int = 0

    def add(self, location: str, error: RowError) -> None:
        """Count a row that is left out."""
        self.kinds[error.kind] += 1
        if len(self.messages) < _KEPT_MESSAGES:
            self.messages.append(f"{location}: {error}")


def iter_examples(
    files: Sequence[Path], on_bad_row: str = STOP, bad: BadRows | None = None
) -> Iterator[tuple[str, Example]]:
    """The examples of ``files`` in order, each with its place, ``path:line`` (in Parquet, the row's number).

    Args:
        files: what ``find_files`` returns.
        on_bad_row: ``"stop"`` raises at the first bad row; ``"skip"`` counts it in ``bad`` and goes on.
        bad: where skipped rows are counted.

    Raises:
        UserError: a file cannot be read, or a row is bad and ``on_bad_row`` is ``"stop"``.
    """
    for path in files:
        for line, example in read_examples(path, on_bad_row, BadRows() if bad is None else bad):
            yield f"{path}:{line}", example


def read_examples(
    path: Path, on_bad_row: str, bad: BadRows, *, out_of: float = 1.0, after: int = 0
) -> Iterator[tuple[int, Example]]:
    """The examples of one file with their line numbers; see ``iter_examples``.

    Args:
        path: the file.
        on_bad_row: what to do with a bad row.
        bad: where skipped rows are counted.
        out_of: the highest score of two sentences.
        after: the lines up to this one are left out, as if they had been read before.
    """
    for line, _, example in read_examples_and_rows(path, on_bad_row, bad, out_of=out_of, after=after):
        yield line, example


def read_examples_and_rows(
    path: Path, on_bad_row: str, bad: BadRows, *, every_column: bool = False, out_of: float = 1.0, after: int = 0
) -> Iterator[tuple[int, Row, Example]]:
    """The same, with the row that each example comes from; ``every_column`` also reads columns not needed here."""
    is_empty = True
    for line, row in read_rows(path, every_column=every_column):
        is_empty = False
        if line <= after:
            continue
        try:
            if isinstance(row, RowError):
                raise row
            example, empty = _example(row, out_of)
            bad.empty_negatives += empty
        except RowError as error:
            _refuse(f"{path}:{line}", error, on_bad_row, bad)
            continue
        yield line, row, example
    if is_empty:
        _refuse(str(path), RowError("empty file", "the file holds no rows"), on_bad_row, bad)


def _refuse(location: str, error: RowError, on_bad_row: str, bad: BadRows) -> None:
    if on_bad_row != SKIP:
        raise UserError(f"{location}: {error}. Correct it, or skip such rows with --on-bad-row skip") from error
    bad.add(location, error)


def _example(row: Row, out_of: float) -> tuple[Example, int]:
    """The example, and how many of its negatives were empty."""
    columns = find_columns(tuple(row))
    query = row[columns.query]
    if type(query) is not str:
        raise RowError("wrong type", f"{columns.query} must be a text; found {describe(query)}")
    if is_blank(query):
        raise RowError("empty text", f"{columns.query} is empty")
    positives = _texts(row[columns.positive], columns.positive)
    if not positives:
        raise RowError("empty text", f"{columns.positive} holds no positive")
    entries, empty = _negatives(row, columns.negatives)
    negatives = tuple(text for text in entries if text is not None)
    positive_scores = _scores(row, columns.positive_scores, positives, columns.positive)
    negative_scores = _scores(row, columns.negative_scores, entries, "/".join(columns.negatives) or "neg")
    prompt = row[columns.prompt] if columns.prompt else None
    if prompt is not None and type(prompt) is not str:
        raise RowError("wrong type", f"prompt must be a text; found {describe(prompt)}")
    similarity = None if columns.similarity is None else _similarity(row[columns.similarity], len(positives), out_of)
    return Example(query, positives, negatives, positive_scores, negative_scores, prompt, similarity), empty


def _entries(value: Any, column: str) -> Sequence[Any]:
    if value is None:
        return ()
    if type(value) is str:
        return (value,)
    if type(value) is not list:
        raise RowError("wrong type", f"{column} must be a text or a list of texts; found {describe(value)}")
    return value


def _texts(value: Any, column: str) -> tuple[str, ...]:
    entries = _entries(value, column)
    for text in entries:
        if type(text) is not str:
            raise RowError("wrong type", f"{column} must hold texts only; found {describe(text)}")
        if is_blank(text):
            raise RowError("empty text", f"{column} holds an empty text")
    return tuple(entries)


def _negatives(row: Row, columns: Sequence[str]) -> tuple[list[str | None], int]:
    """The negatives of a row, None for those that are empty, and how many of those were written as a text or entry.

    Many tools pad lists to one length, and many people write ``[""]`` for no negatives.
    """
    found: list[str | None] = []
    written = 0
    for column in columns:
        for text in (None,) if row[column] is None else _entries(row[column], column):
            if text is not None and type(text) is not str:
                raise RowError("wrong type", f"{column} must hold texts only; found {describe(text)}")
            empty = text is None or is_blank(text)
            written += empty and row[column] is not None
            found.append(None if empty else text)
    return found, written


def _scores(row: Row, column: str | None, texts: Sequence[str | None], texts_column: str) -> tuple[float, ...] | None:
    """The scores of the texts that are not None; there may be scores of the others too."""
    value = None if column is None else row[column]
    if value is None:
        return None
    scores = value if type(value) is list else [value]
    wanted = sum(text is not None for text in texts)
    if len(scores) == len(texts):
        scores = [score for score, text in zip(scores, texts, strict=True) if text is not None]
    if not all(type(score) in (int, float) and math.isfinite(score) for score in scores):
        raise RowError("wrong type", f"{column} must be a finite number or a list of them")
    if len(scores) != wanted:
        raise RowError("scores", f"{column} holds {len(scores)} scores for {wanted} texts in {texts_column}")
    return tuple(float(score) for score in scores)


def _similarity(value: Any, texts: int, out_of: float) -> float:
    if type(value) not in (int, float) or not -out_of <= value <= out_of:
        found = f"{value:g}" if type(value) in (int, float) else describe(value)
        hint = " (if it is out of 5: --scores-out-of 5)" if out_of == 1 else ""
        raise RowError("score", f"score must be a number from {-out_of:g} to {out_of:g}{hint}; found {found}")
    if texts != 1:
        raise RowError("score", f"a score needs two sentences; found {texts} in sentence2")
    return float(value) / out_of
