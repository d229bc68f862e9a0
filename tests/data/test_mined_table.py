"""Rows with further hard negatives are the rows of a file in which these stand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biencoder.data.mined_table import with_negatives
from biencoder.data.plan.sampling import Sampler
from biencoder.data.table import ExampleTable
from biencoder.data.text import text_hash

ROWS: list[dict[str, Any]] = [
    {"query": "a", "pos": ["a1", "a2"], "neg": ["x"], "pos_scores": [2.0, 1.0], "neg_scores": [0.5]},
    {"query": "b", "pos": ["b1"], "neg": []},
    {"query": "c", "pos": ["c1"], "neg": ["y", "z"]},
    {"query": "d", "pos": ["d1"]},
]
PASSAGES = ["a1", "a2", "b1", "c1", "d1", "x", "y", "z"]  # positives, then negatives
MINED = np.array([[2, 6], [-1, -1], [5, -1], [0, 7]])


def table_of(folder: Path, rows: list[dict[str, Any]]) -> ExampleTable:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ExampleTable.from_files([path])


@pytest.fixture
def table(tmp_path: Path) -> ExampleTable:
    return table_of(tmp_path, ROWS)


def test_places_are_those_of_the_passages(table: ExampleTable) -> None:
    assert [table.passage(place) for place in range(8)] == PASSAGES


def test_the_rows_are_those_of_a_file_with_these_negatives(table: ExampleTable, tmp_path: Path) -> None:
    mined = with_negatives(table, MINED)
    more = [[PASSAGES[place] for place in places if place >= 0] for places in MINED.tolist()]
    rows = [
        {"query": row["query"], "pos": row["pos"], "neg": [*row.get("neg", []), *new]}
        for row, new in zip(ROWS, more, strict=True)
    ]
    written = table_of(tmp_path, rows)
    for i in range(len(ROWS)):
        assert mined[i].negatives == written[i].negatives
        assert (mined[i].query, mined[i].positives) == (written[i].query, written[i].positives)
    for ours, theirs in (
        (mined.negative_hashes, written.negative_hashes),
        (mined.positive_hashes, written.positive_hashes),
    ):
        np.testing.assert_array_equal(ours.values, theirs.values)
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)
    assert len(mined) == 4
    assert mined.max_negatives == 3


def test_a_teacher_has_no_score_for_what_is_new(table: ExampleTable) -> None:
    mined = with_negatives(table, MINED)
    assert mined[0].positive_scores == (2.0, 1.0)
    np.testing.assert_array_equal(mined[0].negative_scores, (0.5, np.nan, np.nan))
    assert mined[2].negative_scores is None


def test_a_sampler_over_it_takes_the_same_rows_and_its_negatives(table: ExampleTable) -> None:
    mined = with_negatives(table, MINED)
    plain = Sampler(table, batch_size=2, group_size=4, seed=3)
    for step in range(5):
        before, after = plain.plan(step), plain.over(mined).plan(step)
        np.testing.assert_array_equal(before.rows, after.rows)
        hashes = [
            mined.negative_hashes.values[slice(*mined.negative_hashes.offsets[[row, row + 1]])] for row in after.rows
        ]
        assert set(after.passage_hash[~after.is_positive].tolist()) == {int(h) for each in hashes for h in each}


def negatives_of(table: ExampleTable) -> list[tuple[str, ...]]:
    """The hard negatives of each row, which must be those that the table's hashes and places name."""
    negatives = [table[i].negatives for i in range(len(table))]
    texts = [text for row in negatives for text in row]
    assert table.negative_hashes.lengths.tolist() == [len(row) for row in negatives]
    assert table.negative_hashes.values.tolist() == [text_hash(text) for text in texts]
    first = len(table.positive_hashes.values)
    assert [table.passage(first + place) for place in range(len(texts))] == texts
    return negatives


def test_a_selection_has_the_negatives_that_its_hashes_name(table: ExampleTable) -> None:
    """Rows are left out, turned round and taken twice, and then again from what was selected."""
    mined = with_negatives(table, MINED)
    first = mined.select(np.array([3, 0, 2, 2]))
    again = first.select(np.array([2, 1, 0]))
    assert negatives_of(mined) == [("x", "b1", "y"), (), ("y", "z", "x"), ("a1", "z")]
    assert negatives_of(first) == [("a1", "z"), ("x", "b1", "y"), ("y", "z", "x"), ("y", "z", "x")]
    assert negatives_of(again) == [("y", "z", "x"), ("x", "b1", "y"), ("a1", "z")]
    assert again[1].query == "a"
    np.testing.assert_array_equal(again[1].negative_scores, (0.5, np.nan, np.nan))
    assert again.location(1) == table.location(0)
