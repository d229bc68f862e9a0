"""Whatever bytes come: readers give what may be trained on, or one message; and nothing is lost on the way."""

import csv
import io
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import write, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biencoder.config import TrainConfig
from biencoder.config.options import build
from biencoder.config.yaml_file import read_yaml
from biencoder.data.files.beir import load_collection
from biencoder.data.files.lines import LONGEST_LINE, read_lines
from biencoder.data.files.records import BadRows, iter_examples
from biencoder.data.table import ExampleTable
from biencoder.data.text import is_blank
from biencoder.errors import UserError
from biencoder.retrieval.texts import Text, read_texts

PROPERTY = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
seen = texts.filter(lambda text: not is_blank(text))
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
rows = st.builds(
    lambda query, pos, neg, scores, prompt: (
        {"query": query, "pos": pos, "neg": neg}
        | ({"pos_scores": [scores] * len(pos), "neg_scores": [scores] * len(neg)} if scores is not None else {})
        | ({"prompt": prompt} if prompt is not None else {})
    ),
    seen,
    st.lists(seen, min_size=1, max_size=3),
    st.lists(seen, max_size=3),
    st.none() | numbers,
    st.none() | texts,
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
columns = st.sampled_from(["query", "pos", "neg", "anchor", "text", "score", "pos_scores", "negative_1", "prompt"])
lines = st.lists(
    st.binary(max_size=60) | st.dictionaries(columns, anything, max_size=4).map(lambda x: json.dumps(x).encode())
)


def outcome(read: Callable[[], Any]) -> Any:
    """What is read, or the message of the only error that may come."""
    try:
        return read()
    except UserError as error:
        return str(error)


def _texts(path: Path) -> list[Text]:
    return list(read_texts(path))


@PROPERTY
@given(st.lists(rows, min_size=1, max_size=5))
def test_what_is_put_in_comes_out_of_the_table(tmp_path: Path, wanted: list[dict[str, Any]]) -> None:
    table = ExampleTable.from_files([write_jsonl(tmp_path / "a.jsonl", wanted)])
    assert len(table) == len(wanted)
    for number, row in enumerate(wanted):
        found = table[number]
        assert (found.query, list(found.positives), list(found.negatives)) == (row["query"], row["pos"], row["neg"])
        assert found.prompt == row.get("prompt")
        assert found.positive_scores == (tuple(row["pos_scores"]) if "pos_scores" in row else None)
        assert found.negative_scores == (tuple(row["neg_scores"]) if "neg_scores" in row else None)


@PROPERTY
@given(st.lists(st.tuples(seen, seen), min_size=1, max_size=5))
def test_csv_and_parquet_hold_the_same_as_json(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    pairs = [(q.replace("\0", "0").replace("\r", " "), f"x{p}".replace("\0", "0").replace("\r", " ")) for q, p in pairs]
    pairs = [(f"x{query}", positive) for query, positive in pairs]
    table = io.StringIO()
    csv.writer(table, quoting=csv.QUOTE_ALL).writerows([("query", "pos"), *pairs])
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": [q for q, _ in pairs], "pos": [p for _, p in pairs]}), parquet)
    files = [
        write_jsonl(tmp_path / "a.jsonl", [{"query": q, "pos": p} for q, p in pairs]),
        write(tmp_path / "a.csv", table.getvalue()),
        parquet,
    ]
    assert len({ExampleTable.from_files([path]).fingerprint for path in files}) == 1


@PROPERTY
@given(lines, st.sampled_from(["a.jsonl", "a.csv", "a.jsonl.gz", "a.parquet"]))
def test_any_bytes_are_rows_that_can_be_used_or_one_message(tmp_path: Path, content: list[bytes], name: str) -> None:
    path = write(tmp_path / name, b"\n".join(content))
    bad = BadRows()
    examples = outcome(lambda: list(iter_examples([path], "skip", bad)))
    if isinstance(examples, str):
        assert name in examples
        return
    for place, example in examples:
        assert place.startswith(f"{path}:")
        for text in (example.query, *example.positives, *example.negatives):
            assert not is_blank(text)
            text.encode()  # raises at a lone surrogate
    assert examples or bad.kinds


@PROPERTY
@given(st.binary(max_size=200) | st.lists(texts).map(lambda words: "\n".join(words).encode()))
def test_any_bytes_are_texts_or_one_message(tmp_path: Path, content: bytes) -> None:
    for name in ("a.txt", "a.jsonl", "a.txt.gz"):
        found = outcome(partial(_texts, write(tmp_path / name, content)))
        if isinstance(found, str):
            assert name in found
            continue
        for row in found:
            assert row.id
            row.text.encode()  # raises at a lone surrogate


cells = st.sampled_from(["q0", "q1", "d0", "d1", "0", "1", "-1", "x", "", "9" * 30]) | texts


@PROPERTY
@given(st.lists(st.lists(cells, max_size=5).map("\t".join), max_size=5))
def test_any_judgements_are_of_the_collection_or_one_message(tmp_path: Path, content: list[str]) -> None:
    for name, letter in (("corpus", "d"), ("queries", "q")):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"_id": f"{letter}{i}", "text": "word"} for i in range(2)])
    write(tmp_path / "qrels" / "test.tsv", "\n".join(content))
    found = outcome(lambda: load_collection(tmp_path))
    if isinstance(found, str):
        assert "test.tsv" in found
        return
    assert set(found.qrels) == set(found.query_ids) <= {"q0", "q1"}
    assert all(set(grades) <= {"d0", "d1"} for grades in found.qrels.values())


keys = st.sampled_from(["seed", "batch-size", "dims", "query-prompt", "train-data", "memory-budget", "normalize", "x"])


@PROPERTY
@given(
    st.binary(max_size=80) | st.dictionaries(keys, anything, max_size=4).map(lambda values: json.dumps(values).encode())
)
def test_any_yaml_is_a_configuration_that_reads_the_same_again_or_one_message(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "run.yaml", content)
    needed = {"model": "m", "train_data": "t.jsonl", "output_dir": "o"}
    config = outcome(lambda: build(TrainConfig, needed | read_yaml(TrainConfig, path)))
    if isinstance(config, str):
        assert len(config) < 2000
        return
    assert isinstance(config, TrainConfig)
    assert build(TrainConfig, read_yaml(TrainConfig, write(path, config.to_yaml()))) == config


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_a_text_of_ten_megabytes_is_a_text(tmp_path: Path, name: str) -> None:
    long = "word " * 2_000_000 + "end"
    content = f'query,pos\nq,"{long}"\n' if "csv" in name else json.dumps({"query": "q", "pos": long}) + "\n"
    [example] = [e for _, e in iter_examples([write(tmp_path / name, content)])]
    assert example.positives == (long,)


def test_a_line_that_swells_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LONGEST_LINE > 100_000_000
    monkeypatch.setattr("biencoder.data.files.lines.LONGEST_LINE", 1 << 20)
    path = write(tmp_path / "bomb.jsonl.gz", b'{"query": "q", "pos": "p"}\n' + b" " * (1 << 24))
    assert path.stat().st_size < 1 << 16
    with pytest.raises(UserError, match=r"bomb\.jsonl\.gz:2: the line is longer than 1 MiB; write one row per line"):
        list(read_lines(path))


def test_numbers_of_thousands_of_digits_are_no_column_numbers(tmp_path: Path) -> None:
    limit = sys.get_int_max_str_digits() + 1 if hasattr(sys, "get_int_max_str_digits") else 5000
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "q", "pos": "p", "negative_" + "9" * limit: "n"}])
    [(_, example)] = iter_examples([path])
    assert example.negatives == ()
