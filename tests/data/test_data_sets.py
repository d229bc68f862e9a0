"""Training data as data sets: what each must have, and the files of others as they are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import row, table_of, write, write_jsonl

from biencoder.cli import main
from biencoder.config import DataSet, TrainConfig, data_sets_of
from biencoder.data.audit import audit
from biencoder.data.data_sets import is_scored, read_data_sets, rows_to_evaluate_on
from biencoder.data.evaluation.held_out import hold_out
from biencoder.data.table import ExampleTable
from biencoder.errors import UserError

SCORED = [{"sentence1": f"one {i}", "sentence2": f"two {i}", "score": i / 40} for i in range(41)]


def data_set(path: Path, **more: Any) -> DataSet:
    return DataSet(path=(path,), name=path.stem, **more)


def read(*data_sets: DataSet) -> ExampleTable:
    return read_data_sets(data_sets, "stop")


@pytest.fixture
def unlike(tmp_path: Path) -> list[DataSet]:
    """Retrieval, classification and scored sentences; a text and a positive of the first stand in the second."""
    retrieval = [row(f"q{i}", f"p{i}", neg=[f"n{i}"]) for i in range(100)]
    labels = [row(f"q{i}" if i < 10 else f"text {i}", f"label {i % 2}", neg=[f"label {1 - i % 2}"]) for i in range(50)]
    labels += [row("who?", f"p{i}", neg=["nobody"]) for i in range(100)]
    return [
        data_set(write_jsonl(tmp_path / "retrieval.jsonl", retrieval)),
        data_set(write_jsonl(tmp_path / "labels.jsonl", labels), in_batch_negatives=False),
        data_set(write_jsonl(tmp_path / "scored.jsonl", SCORED)),
    ]


def test_rows_know_their_data_set_also_in_a_selection(unlike: list[DataSet]) -> None:
    table = read(*unlike)
    assert np.bincount(table.data_set).tolist() == [100, 150, 41]
    assert table.select(np.array([290, 5, 120])).data_set.tolist() == [2, 0, 1]
    assert [is_scored(table, number) for number in range(3)] == [False, False, True]
    assert table.fingerprint != ExampleTable.from_files([each.path[0] for each in unlike]).fingerprint
    assert read(unlike[0]).fingerprint == ExampleTable.from_files(unlike[0].path).fingerprint


def test_sentence_transformers_scored_pairs(tmp_path: Path) -> None:
    files = [
        write_jsonl(tmp_path / "a.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 0.25}]),
        write(tmp_path / "a.csv", "sentence1,sentence2,score\na,b,0.25\n"),
        write(tmp_path / "b.csv", "idx,score,sentence2,sentence1\n7,0.25,b,a\n"),
    ]
    for path in files:
        table = ExampleTable.from_files([path])
        assert (table[0].query, table[0].positives, table[0].similarity) == ("a", ("b",), 0.25)
        assert table.answers.values.size == 0  # a score is no knowledge that one answers the other
    assert len({ExampleTable.from_files([path]).fingerprint for path in files}) == 1
    other = write_jsonl(tmp_path / "c.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 0.5}])
    assert ExampleTable.from_files([other]).fingerprint != ExampleTable.from_files(files[:1]).fingerprint
    pairs = ExampleTable.from_files([write_jsonl(tmp_path / "d.jsonl", [{"sentence1": "a", "sentence2": "b"}])])
    assert (pairs[0].positives, pairs[0].similarity) == (("b",), None)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            {"score": 4.2},
            r":1: score must be .* to 1 \(if it is out of 5: --scores-out-of 5\); found 4\.2",
        ),
        ({"score": "high"}, r":1: score must be a number from -1 to 1 .*; found a text"),
        ({"score": None}, r":1: score must be a number from -1 to 1 .*; found null"),
        ({"label": 1}, r":1: sentence1 and sentence2 come with a label, .*name the column score"),
    ],
)
def test_scores_that_cannot_be_used(tmp_path: Path, given: dict[str, Any], reason: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"sentence1": "a", "sentence2": "b"} | given])
    with pytest.raises(UserError, match=reason):
        ExampleTable.from_files([path])


def test_a_score_beside_other_columns_is_ignored_as_before(tmp_path: Path) -> None:
    assert table_of(tmp_path, [row("q", "p", score=17.5, type="retrieval")])[0].similarity is None


def test_scored_pairs_and_others_do_not_share_a_data_set(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [row("q", "p")])
    write_jsonl(tmp_path / "b.jsonl", SCORED)
    with pytest.raises(
        UserError, match=r"b\.jsonl:1 holds two sentences and a score per row, and .*a\.jsonl:1 does not"
    ):
        read(DataSet(path=(tmp_path,)))


def test_no_negatives_at_all_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", [row("q", "p"), row("r", "s")])
    with pytest.raises(UserError, match="data set pairs: no row has a negative, and without in-batch negatives"):
        read(data_set(path, in_batch_negatives=False))


def test_a_data_set_without_a_usable_row_is_named(tmp_path: Path) -> None:
    good, bad = write_jsonl(tmp_path / "a.jsonl", [row("q", "p")]), write_jsonl(tmp_path / "b.jsonl", [row("", "p")])
    with pytest.raises(UserError, match=r"no usable row in .*b\.jsonl; the first: .*b\.jsonl:1"):
        read_data_sets([data_set(good), data_set(bad)], "skip")


def test_flag_embeddings_folders_without_in_batch_negatives(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x_no_in_batch_neg" / "a.jsonl", [row("q", "p", neg=["n"], type="classification")])
    plain = write_jsonl(tmp_path / "b.jsonl", [row("q", "p"), row("r", "s", neg=[])])
    marked = write_jsonl(tmp_path / "c_no_in_batch_neg.jsonl", [row("t", "u", neg=["v"])])
    found = data_sets_of([tmp_path / "x_no_in_batch_neg", plain, marked, DataSet(path=(marked,), weight=2.0)])
    assert [(each.path, each.in_batch_negatives, each.weight) for each in found] == [
        ((plain,), None, 1.0),
        ((tmp_path / "x_no_in_batch_neg",), False, 1.0),
        ((marked,), False, 1.0),
        ((marked,), False, 2.0),
    ]
    assert read(*found).data_set.tolist() == [0, 0, 1, 2, 3]


def test_what_is_held_out_is_of_data_sets_with_in_batch_negatives(unlike: list[DataSet]) -> None:
    table = read(*unlike)
    rows = rows_to_evaluate_on(unlike, table)
    assert np.flatnonzero(rows).tolist() == list(range(100))
    held = hold_out(table, seed=0, queries=10, passages=50, rows=rows)
    assert len(held.collection.query_ids) == 10
    assert {text[0] for text in held.collection.corpus_texts} <= {"p", "n"}
    queries, texts = (
        set(held.collection.query_texts),
        dict(zip(held.collection.corpus_ids, held.collection.corpus_texts, strict=True)),
    )
    for query, text in zip(held.collection.query_ids, held.collection.query_texts, strict=True):
        assert [texts[document] for document in held.collection.qrels[query]] == [f"p{text[1:]}"]
    train = [held.train[i] for i in range(len(held.train))]
    assert not queries & {example.query for example in train}  # in no data set
    assert not {f"p{query[1:]}" for query in queries} & {text for example in train for text in example.positives}
    assert np.bincount(held.train.data_set)[2] == 41


def test_where_nothing_has_in_batch_negatives_the_rest_is_evaluated_on(unlike: list[DataSet]) -> None:
    table = read(*unlike[1:])
    assert np.flatnonzero(rows_to_evaluate_on(unlike[1:], table)).tolist() == list(range(150))
    table = read(unlike[2])
    assert np.flatnonzero(rows_to_evaluate_on(unlike[2:], table)).tolist() == list(range(32, 41))  # 0.8 and above


def test_the_audit_counts_by_data_set(unlike: list[DataSet]) -> None:
    rows = audit(read(*unlike), names=[each.name or "" for each in unlike]).rows(8)
    assert rows[:4] == [
        ("rows", "291 in 3 files", ""),
        ("rows of retrieval", "100 (34.4%)", ""),
        ("rows of labels", "150 (51.5%)", ""),
        ("rows of scored", "41 (14.1%)", ""),
    ]
    assert rows[1][0] not in {label for label, _, _ in audit(read(unlike[0]), names=["retrieval"]).rows(8)}


FLAG_EMBEDDING = {"query": "q", "pos": ["p"], "neg": ["n", "m"], "pos_scores": [1.0], "neg_scores": [0.5, -2.0],
                  "prompt": "Find: ", "type": "retrieval"}  # fmt: skip


@pytest.mark.parametrize("missing", [[], ["neg_scores", "pos_scores"], ["prompt"], ["type", "prompt"]])
def test_flag_embeddings_rows(missing: list[str], tmp_path: Path) -> None:
    given = {name: value for name, value in FLAG_EMBEDDING.items() if name not in missing}
    (tmp_path / "a.jsonl").write_text(json.dumps(given) + "\n")
    example = ExampleTable.from_files([tmp_path / "a.jsonl"])[0]
    assert (example.query, example.positives, example.negatives) == ("q", ("p",), ("n", "m"))
    assert example.negative_scores == (None if "neg_scores" in missing else (0.5, -2.0))
    assert example.prompt == (None if "prompt" in missing else "Find: ")


def test_scores_out_of_five(tmp_path: Path) -> None:
    path = tmp_path / "sts.jsonl"
    path.write_text(
        "".join(json.dumps({"sentence1": "a", "sentence2": f"b{x}", "score": x}) + "\n" for x in (0, 2.5, 5))
    )
    out_of_one = tmp_path / "one.jsonl"
    out_of_one.write_text(json.dumps({"sentence1": "a", "sentence2": "b", "score": 0.5}) + "\n")
    sets = [DataSet(path=(path,), scores_out_of=5.0), DataSet(path=(out_of_one,))]
    assert read_data_sets(sets, "stop").similarities.tolist() == [0.0, 0.5, 1.0, 0.5]
    with pytest.raises(UserError, match=r"sts\.jsonl:3: score must be a number from -4 to 4; found 5"):
        read_data_sets([DataSet(path=(path,), scores_out_of=4.0)], "stop")
    config = TrainConfig(model="m", train_data=(path,), output_dir=tmp_path / "o", scores_out_of=5.0)
    assert [data_set.scores_out_of for data_set in config.data_sets] == [5.0]
    assert main(["check", "--train-data", str(path), "--scores-out-of", "5"]) == 0
