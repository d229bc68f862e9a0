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
        negatives: hard negatives, none empty; there may be none.
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
    """Counts of the rows that were left out, by kind, and the first messages about them."""

    kinds: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

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


def read_examples(path: Path, on_bad_row: str, bad: BadRows) -> Iterator[tuple[int, Example]]:
    """The examples of one file with their line numbers; see ``iter_examples``."""
    for line, _, example in read_examples_and_rows(path, on_bad_row, bad):
        yield line, example


def read_examples_and_rows(
    path: Path, on_bad_row: str, bad: BadRows, *, every_column: bool = False
) -> Iterator[tuple[int, Row, Example]]:
    """The same, with the row that each example comes from; ``every_column`` also reads columns not needed here."""
    is_empty = True
    for line, row in read_rows(path, every_column=every_column):
        is_empty = False
        try:
            if isinstance(row, RowError):
                raise row
            example = _example(row)
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


def _example(row: Row) -> Example:
    columns = find_columns(tuple(row))
    query = row[columns.query]
    if type(query) is not str:
        raise RowError("wrong type", f"{columns.query} must be a text; found {describe(query)}")
    if is_blank(query):
        raise RowError("empty text", f"{columns.query} is empty")
    positives = _texts(row[columns.positive], columns.positive)
    if not positives:
        raise RowError("empty text", f"{columns.positive} holds no positive")
    negatives: tuple[str, ...] = ()
    for name in columns.negatives:
        negatives += _texts(row[name], name)
    positive_scores = _scores(row, columns.positive_scores, len(positives), columns.positive)
    negative_scores = _scores(row, columns.negative_scores, len(negatives), "/".join(columns.negatives) or "neg")
    prompt = row[columns.prompt] if columns.prompt else None
    if prompt is not None and type(prompt) is not str:
        raise RowError("wrong type", f"prompt must be a text; found {describe(prompt)}")
    similarity = None if columns.similarity is None else _similarity(row[columns.similarity], len(positives))
    return Example(query, positives, negatives, positive_scores, negative_scores, prompt, similarity)


def _texts(value: Any, column: str) -> tuple[str, ...]:
    if type(value) is str:
        value = (value,)
    elif value is None:
        return ()
    elif type(value) is not list:
        raise RowError("wrong type", f"{column} must be a text or a list of texts; found {describe(value)}")
    for text in value:
        if type(text) is not str:
            raise RowError("wrong type", f"{column} must hold texts only; found {describe(text)}")
        if is_blank(text):
            raise RowError("empty text", f"{column} holds an empty text")
    return tuple(value)


def _scores(row: Row, column: str | None, wanted: int, texts: str) -> tuple[float, ...] | None:
    value = None if column is None else row[column]
    if value is None:
        return None
    scores = value if type(value) is list else [value]
    if not all(type(score) in (int, float) and math.isfinite(score) for score in scores):
        raise RowError("wrong type", f"{column} must be a finite number or a list of them")
    if len(scores) != wanted:
        raise RowError("scores", f"{column} holds {len(scores)} scores for {wanted} texts in {texts}")
    return tuple(float(score) for score in scores)


def _similarity(value: Any, texts: int) -> float:
    if type(value) not in (int, float) or not -1 <= value <= 1:
        found = f"{value:g}" if type(value) in (int, float) else describe(value)
        raise RowError("score", f"score must be a number from -1 to 1 (divide marks out of 5 by 5); found {found}")
    if texts != 1:
        raise RowError("score", f"a score needs two sentences; found {texts} in sentence2")
    return float(value)
