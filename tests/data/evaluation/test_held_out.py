from pathlib import Path

import numpy as np
import pytest
from data_files import row, table_of

from biencoder.data.evaluation.held_out import HeldOut, hold_out
from biencoder.data.table import ExampleTable
from biencoder.errors import UserError


def check_no_leak(table: ExampleTable, held: HeldOut, *, shared_positives: bool = False) -> None:
    """Held-out queries and their positives are not trained on; the judgements are exactly the positives."""
    found = held.collection
    texts = dict(zip(found.corpus_ids, found.corpus_texts, strict=True))
    queries = dict(zip(found.query_ids, found.query_texts, strict=True))
    assert len(texts) == len(found.corpus_ids) == len(set(found.corpus_texts))
    assert len(queries) == len(set(found.query_texts))
    known: dict[str, set[str]] = {}
    for i in range(len(table)):
        known.setdefault(table[i].query, set()).update(table[i].positives)
    assert set(found.qrels) == set(queries)
    for query_id, grades in found.qrels.items():
        assert set(grades.values()) == {1}
        assert {texts[document] for document in grades} == known[queries[query_id]]
    train = [held.train[i] for i in range(len(held.train))]
    assert not {example.query for example in train} & set(queries.values())
    positives = {texts[document] for grades in found.qrels.values() for document in grades}
    assert bool({p for example in train for p in example.positives} & positives) is shared_positives


def rows(count: int) -> list[dict[str, object]]:
    return [row(f"q{i // 2}", f"p{i}", f"p{i}b", neg=[f"n{i % 5}"]) for i in range(count)]


def test_held_out_queries_and_their_positives_are_not_trained_on(tmp_path: Path) -> None:
    table = table_of(tmp_path, rows(400))
    held = hold_out(table, seed=1, queries=12, passages=100)
    check_no_leak(table, held)
    assert len(held.collection.query_ids) == 12
    assert len(held.collection.corpus_ids) == 100
    assert len(held.train) == 400 - 2 * 12
    sampled = "100 of 805 passages (all answers, those that share most words with the queries, and others at random)"
    assert held.collection.description == f"held-out: 12 queries (24 of 400 rows), {sampled}"


def test_the_corpus_holds_all_positives_even_beyond_its_size(tmp_path: Path) -> None:
    table = table_of(tmp_path, rows(400))
    held = hold_out(table, seed=1, queries=12, passages=10)
    check_no_leak(table, held)
    assert len(held.collection.corpus_ids) == 12 * 4


def test_the_corpus_may_be_all_passages(tmp_path: Path) -> None:
    table = table_of(tmp_path, rows(400))
    held = hold_out(table, seed=1, queries=12, passages=10_000)
    assert {f"n{i}" for i in range(5)} < set(held.collection.corpus_texts)
    assert held.collection.description == "held-out: 12 queries (24 of 400 rows), 805 passages"


def test_at_most_a_tenth_of_the_queries_is_held_out(tmp_path: Path) -> None:
    table = table_of(tmp_path, rows(60))
    assert len(hold_out(table, seed=1, queries=500, passages=100).collection.query_ids) == 3


def test_rows_that_share_a_positive_are_left_out_too(tmp_path: Path) -> None:
    pairs = [row(f"q{i}", f"p{i // 2}") for i in range(200)]
    table = table_of(tmp_path, pairs)
    held = hold_out(table, seed=0, queries=5, passages=50)
    check_no_leak(table, held)
    assert 190 <= len(held.train) < 195  # each held-out query takes its partner with it, unless that is held out itself


def test_rows_that_share_a_positive_stay_where_that_would_cost_too_much(tmp_path: Path) -> None:
    table = table_of(tmp_path, [row(f"q{i}", f"class {i % 2}", f"p{i}") for i in range(200)])
    held = hold_out(table, seed=0, queries=10, passages=50)
    check_no_leak(table, held, shared_positives=True)
    assert len(held.train) == 190
    assert held.collection.description.endswith("; 190 training rows share a positive with them")


def test_the_choice_depends_on_the_seed_and_the_texts_alone(tmp_path: Path) -> None:
    data = rows(400)
    table, turned = table_of(tmp_path / "a", data), table_of(tmp_path / "b", data[::-1])
    one, other, again = (hold_out(t, seed=7, queries=9, passages=60).collection for t in (table, turned, table))
    assert one == again
    assert (one.query_ids, one.query_texts) == (other.query_ids, other.query_texts)
    assert sorted(one.corpus_texts) == sorted(other.corpus_texts)
    assert one.query_texts != hold_out(table, seed=8, queries=9, passages=60).collection.query_texts


def test_too_few_queries(tmp_path: Path) -> None:
    table = table_of(tmp_path, [row(f"q{i % 4}", f"p{i}") for i in range(100)])
    with pytest.raises(UserError, match=r"has 4 distinct queries.*--eval-data"):
        hold_out(table, seed=0, queries=5, passages=50)


def test_medquad(medquad: Path) -> None:
    table = ExampleTable.from_files([medquad / "train.jsonl.gz"])
    held = hold_out(table, seed=42, queries=200, passages=2000)
    check_no_leak(table, held)
    assert len(held.collection.corpus_ids) == 2000
    assert len(held.train) > 0.9 * len(table)
    assert np.all(np.diff([int(held.train.location(i).rsplit(":", 1)[1]) for i in range(1000)]) > 0)
