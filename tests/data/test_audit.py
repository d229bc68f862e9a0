from pathlib import Path

import numpy as np
import pytest
from data_files import row, table_of, write_jsonl
from numpy.typing import NDArray

from biencoder.data.audit import Audit, audit
from biencoder.data.files.beir import Collection, load_collection
from biencoder.data.table import ExampleTable


def words(texts: list[str]) -> NDArray[np.int64]:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def verdicts(found: Audit, group_size: int = 3) -> dict[str, tuple[str, str]]:
    return {label: (value, verdict) for label, value, verdict in found.rows(group_size)}


CLEAN = [row(f"q{i}", f"p{i}", neg=[f"n{i}", f"m{i}"]) for i in range(10)]


def test_clean_data(tmp_path: Path) -> None:
    found = audit(table_of(tmp_path, CLEAN))
    assert (found.examples, found.distinct_queries, found.duplicates, found.contradictions) == (10, 10, 0, 0)
    assert found.leaks is None
    assert found.truncation is None
    assert verdicts(found) == {
        "rows": ("10 in 1 file", ""),
        "distinct queries": ("10", ""),
        "bad rows left out": ("0", ""),
        "duplicate rows (query and positive)": ("0", ""),
        "positive is also a negative": ("0", ""),
        "fewer than 2 hard negatives": ("0 rows", ""),
    }


def test_duplicates_are_rows_that_repeat_a_pair_of_an_earlier_row(tmp_path: Path) -> None:
    rows = [
        row("q", "a", "b"),
        row("q", "c", "b"),  # one of its pairs again
        row("q", "d"),
        row("r", "a"),  # another query
        row("s", "a", "a"),  # twice in one row is no repeated row
        row("q", "a", "b"),  # two of its pairs again: one row
        row("a", "q"),  # the other way round
    ]
    found = audit(table_of(tmp_path, rows))
    assert found.duplicates == 2
    assert verdicts(found)["duplicate rows (query and positive)"] == ("2 rows (28.6%)", "warn")


def test_contradictions_are_within_a_row(tmp_path: Path) -> None:
    rows = [row("q", "a", "b", neg=["c", "b", "b"]), row("r", "c", neg=["a"]), row("s", "d")]
    found = audit(table_of(tmp_path, rows))
    assert found.contradictions == 1
    assert verdicts(found)["positive is also a negative"] == ("1 rows (33.3%)", "warn")


def test_groups(tmp_path: Path) -> None:
    found = audit(table_of(tmp_path, [row(f"q{i}", f"p{i}", neg=["n"] * n) for i, n in enumerate([0, 1, 1, 4])]))
    assert found.negative_counts.tolist() == [1, 2, 0, 0, 1]
    assert [found.short_groups(size) for size in (1, 2, 3, 5, 6, 100)] == [0, 0.25, 0.75, 0.75, 1, 1]
    assert verdicts(found, 8)["fewer than 7 hard negatives"] == (
        "100.0% of rows, whose groups are smaller; the most is 4",
        "warn",
    )
    assert verdicts(found, 2)["fewer than 1 hard negatives"][1] == ""
    assert verdicts(found, 1)["hard negatives"] == ("not used (group size 1)", "")


def test_no_hard_negatives_at_all(tmp_path: Path) -> None:
    found = audit(table_of(tmp_path, [row("q", "p")]))
    assert found.short_groups(8) == 1
    assert verdicts(found, 8)["hard negatives"] == ("none; the other passages of a batch serve as negatives", "")


def test_leaks(tmp_path: Path) -> None:
    rows = [*CLEAN, row("asked", "x"), row("asked", "answer", "other"), row("y", "answer"), row("z", "seen but wrong")]
    collection = Collection(
        corpus_ids=["d1", "d2", "d3"],
        corpus_texts=["answer", "seen but wrong", "p1"],
        query_ids=["e1", "e2"],
        query_texts=["asked", "never"],
        qrels={"e1": {"d1": 2, "d2": 0}, "e2": {"d1": 1}},
        description="exam (test)",
    )
    found = audit(table_of(tmp_path, rows), collection)
    assert found.leaks is not None
    assert (found.leaks.queries, found.leaks.passages, found.leaks.evaluation) == (2, 2, "exam (test)")
    assert verdicts(found)["query also in the evaluation"] == ("2 rows (14.3%)", "warn")
    assert verdicts(found)["positive also answers an evaluation query"] == ("2 rows (14.3%)", "warn")


def test_truncation_counts_texts_longer_than_the_limit(tmp_path: Path) -> None:
    rows = [row("a b c", "a b c d"), row("a b", "a b c d e"), row("a", "a b"), row("a b c d", "a")]
    found = audit(table_of(tmp_path, rows), None, words, 3, 4)
    assert found.truncation is not None
    assert (found.truncation.queries, found.truncation.passages) == (0.25, 0.25)
    assert verdicts(found)["queries cut at 3 tokens"] == ("25.0% (of 4 sampled)", "warn")
    exact = audit(table_of(tmp_path, rows), None, words, 4, 5)
    assert verdicts(exact)["passages cut at 5 tokens"] == ("0.0% (of 4 sampled)", "")


def test_truncation_is_estimated_on_at_most_a_thousand_rows(tmp_path: Path) -> None:
    table = table_of(tmp_path, [row(f"q{i}", "long text" if i % 4 == 0 else "short") for i in range(5000)])
    measured: list[int] = []

    def lengths(texts: list[str]) -> NDArray[np.int64]:
        measured.append(len(texts))
        return words(texts)

    shares = [audit(table, None, lengths, 5, 1).truncation for _ in range(2)]
    assert measured == [1000] * 4
    assert shares[0] == shares[1]
    assert shares[0] is not None
    assert shares[0].passages == pytest.approx(0.25, abs=0.07)


def test_skipped_rows_are_shown_by_kind(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*CLEAN, {"query": "", "pos": "p"}, {"query": " ", "pos": "p"}, {}])
    found = audit(ExampleTable.from_files([path], on_bad_row="skip"))
    assert verdicts(found)["bad rows left out"] == ("3 (2 empty text, 1 missing column)", "warn")
    assert len(found.bad_rows) == 3


def test_medquad(medquad: Path) -> None:
    """Against counts by plain Python over the same file."""
    table = ExampleTable.from_files([medquad / "train.jsonl.gz"])
    collection = load_collection(medquad / "dev")
    found = audit(table, collection)
    pairs: set[tuple[str, str]] = set()
    queries, answers = set(collection.query_texts), set()
    texts = dict(zip(collection.corpus_ids, collection.corpus_texts, strict=True))
    for grades in collection.qrels.values():
        answers |= {texts[document] for document, grade in grades.items() if grade > 0}
    duplicates = leaked_queries = leaked_passages = 0
    for i in range(len(table)):
        mine = {(table[i].query, positive) for positive in table[i].positives}
        duplicates += bool(mine & pairs)
        pairs |= mine
        leaked_queries += table[i].query in queries
        leaked_passages += any(positive in answers for positive in table[i].positives)
    assert duplicates > 0
    assert found.duplicates == duplicates
    assert found.leaks is not None
    assert (found.leaks.queries, found.leaks.passages) == (leaked_queries, leaked_passages)
