"""The data sets of the training data: reading, checking, and choosing the rows that an evaluation can use."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biencoder.config import DataSet
from biencoder.data.table import ExampleTable
from biencoder.data.table_parts import Parts
from biencoder.errors import UserError

CLEARLY_SIMILAR = 0.8  # from this score on, the second sentence counts as an answer to the first


def read_data_sets(data_sets: Sequence[DataSet], on_bad_row: str, parts: Parts | None = None) -> ExampleTable:
    """Read all data sets into one table.

    Args:
        data_sets: at least one.
        on_bad_row: ``"stop"`` or ``"skip"``.
        parts: what :func:`parts_of` gives, for ranks that share what they store.

    Raises:
        UserError: a file or row cannot be used, or a data set has nothing to learn from.
    """
    table = ExampleTable.from_data_sets([each.path for each in data_sets], on_bad_row, _out_of(data_sets), parts=parts)
    for number, data_set in enumerate(data_sets):
        _check(data_set, number, table)
    return table


def parts_of(data_sets: Sequence[DataSet], on_bad_row: str) -> Parts:
    """Where the parts of the table lie that :func:`read_data_sets` reads."""
    return Parts.of([each.path for each in data_sets], on_bad_row, _out_of(data_sets))


def _out_of(data_sets: Sequence[DataSet]) -> list[float]:
    return [data_set.scores_out_of or 1.0 for data_set in data_sets]


def _check(data_set: DataSet, number: int, table: ExampleTable) -> None:
    rows = np.flatnonzero(table.data_set == number)
    scored = ~np.isnan(table.similarities[rows])
    if scored.any() and not scored.all():
        one, other = (table.location(int(rows[np.argmax(scored == wanted)])) for wanted in (True, False))
        raise UserError(
            f"{one} holds two sentences and a score per row, and {other} does not. They train in different ways: "
            "make each a data set of its own, as an item of train-data in a --config file"
        )
    if not scored.any() and data_set.in_batch_negatives is False and not table.negative_hashes.lengths_of(rows).any():
        raise UserError(
            f"data set {data_set.name}: no row has a negative, and without in-batch negatives the model has "
            "none to learn from"
        )


def is_scored(table: ExampleTable, number: int) -> bool:
    """Whether the data set holds pairs of texts with a score that says how similar they are."""
    return not np.isnan(table.similarities[np.argmax(table.data_set == number)])


def is_of_single_texts(table: ExampleTable, number: int) -> bool:
    """Whether each text of the data set is its own positive. Only dropout tells the two apart (Gao et al. 2021)."""
    return bool(_finds_itself(table)[table.data_set == number].all())


def _finds_itself(table: ExampleTable) -> NDArray[np.bool_]:
    """Rows whose query is one of their positives, bool ``[n]``."""
    owners = table.positive_hashes.owners()
    found = np.zeros(len(table), np.bool_)
    found[owners[table.positive_hashes.values == table.query_hashes[owners]]] = True
    return found


def rows_to_evaluate_on(data_sets: Sequence[DataSet], table: ExampleTable) -> NDArray[np.bool_]:
    """The rows that an evaluation of search may use, bool ``[n]``.

    First choice: rows of data sets with in-batch negatives, in which every passage could answer every query. Second:
    all rows with a positive. Third: pairs with a high score. A row whose query would find itself is never used.
    """
    finds_itself = _finds_itself(table)
    is_pair = ~np.isnan(table.similarities) | finds_itself
    in_batch = np.array([data_set.in_batch_negatives is not False for data_set in data_sets])[table.data_set]
    for rows in (in_batch & ~is_pair, ~is_pair):
        if rows.any():
            return rows
    return (table.similarities >= CLEARLY_SIMILAR) & ~finds_itself


def settings_of(data_sets: Sequence[DataSet]) -> list[dict[str, Any]]:
    """The settings that decide how each data set trains, to tell whether a run is the same; without the data."""
    return [
        {name: value for name, value in data_set.to_dict().items() if name not in ("path", "name")}
        for data_set in data_sets
    ]
