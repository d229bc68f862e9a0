"""Rows of training files with the scores of a teacher of any kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from biencoder.data.files.formats import Row
from biencoder.data.files.records import Example
from biencoder.data.rewrite import DECIMALS, as_line, rows_of
from biencoder.errors import UserError


@dataclass(frozen=True)
class Scored:
    """How much was scored.

    Attributes:
        rows: rows of the training files.
        pairs: pairs of a query and a positive or negative.
        reused: pairs that an earlier run had scored, or passages that it had encoded.
    """

    rows: int
    pairs: int
    reused: int


@dataclass(frozen=True)
class RowsSummary:
    """What training files hold.

    Attributes:
        rows: usable rows.
        pairs: positives and negatives of these rows.
        fingerprint: digest of the rows with all their columns, in order.
    """

    rows: int
    pairs: int
    fingerprint: str


def summarize_rows(train_data: Sequence[Path], on_bad_row: str) -> RowsSummary:
    """Count and fingerprint the rows of training files. This checks every row.

    Raises:
        UserError: a file cannot be read, a row is bad and ``on_bad_row`` is ``"stop"``, or no row is left.
    """
    digest, rows, pairs = xxhash.xxh3_128(), 0, 0
    for place, row, example in rows_of(train_data, on_bad_row):
        digest.update(as_line(row, place))
        rows += 1
        pairs += len(example.positives) + len(example.negatives)
    if not rows:
        raise UserError(f"no usable row in {', '.join(map(str, train_data))}")
    return RowsSummary(rows, pairs, digest.hexdigest())


def with_scores(row: Row, example: Example, scores: NDArray[np.float32]) -> Row:
    """The row with ``pos_scores`` and ``neg_scores``: first the positives' scores, then the negatives'."""
    rounded = [round(float(score), DECIMALS) for score in scores]
    positives = len(example.positives)
    return row | {"pos_scores": rounded[:positives], "neg_scores": rounded[positives:]}
