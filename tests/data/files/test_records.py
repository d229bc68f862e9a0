from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import row, write, write_jsonl

from biencoder.data.audit import audit
from biencoder.data.files.records import BadRows, Example, iter_examples
from biencoder.data.table import ExampleTable
from biencoder.errors import UserError


def only(folder: Path, content: Any) -> Example:
    path = folder / "a.jsonl"
    [(_, example)] = iter_examples([write_jsonl(path, [content])])
    return example


def test_flag_embedding_rows(tmp_path: Path) -> None:
    given = row("q", "p1", "p2", neg=["n"], pos_scores=[1, 0.5], neg_scores=[-3], prompt="Find: ", type="retrieval")
    assert only(tmp_path, given) == Example("q", ("p1", "p2"), ("n",), (1.0, 0.5), (-3.0,), "Find: ")


@pytest.mark.parametrize("query", ["query", "anchor", "question"])
@pytest.mark.parametrize("positive", ["pos", "positive", "answer"])
def test_column_names(tmp_path: Path, query: str, positive: str) -> None:
    assert only(tmp_path, {query: "q", positive: "p"}) == Example("q", ("p",), (), None, None, None)


def test_numbered_negatives_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    given = {
        "anchor": "q",
        "negative_10": "n10",
        "negative_2": "n2",
        "positive": "p",
        "negative": "n",
        "negative_3": None,
    }
    assert only(tmp_path, given).negatives == ("n", "n2", "n10")


def test_missing_negatives_scores_and_prompt(tmp_path: Path) -> None:
    given = {"query": "q", "pos": "p", "neg": None, "pos_scores": None, "neg_scores": None, "prompt": None}
    assert only(tmp_path, given) == Example("q", ("p",), (), None, None, None)
    assert only(tmp_path, {"query": "q", "pos": ["p"], "neg": []}).negatives == ()
    assert only(tmp_path, row("q", "p", prompt="")).prompt == ""  # none, and not the run's own


def test_rows_of_one_file_may_have_different_columns(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "q", "pos": "p"}, {"neg": "n", "answer": "b", "question": "a"}])
    assert [(e.query, e.positives, e.negatives) for _, e in iter_examples([path])] == [
        ("q", ("p",), ()),
        ("a", ("b",), ("n",)),
    ]


BAD = [
    (b'{"query": "q", "pos": ["p"]', "not JSON", "not JSON"),
    (b"plain text", "not JSON", "not JSON"),
    (b'{"query": "q", "pos": "p", "neg_scores": [NaN]}', "not JSON", "not JSON"),
    (b'["q", "p"]', "not JSON", "must be a JSON object; found a list; write one object per line, not a JSON array"),
    (b"[", "not JSON", r"not JSON \(.*\); write one object per line, not a JSON array"),
    (b'{"query": "\xff", "pos": "p"}', "not UTF-8", r"not UTF-8 text \(byte 0xff, column 12\)"),
    (
        b'{"pos": ["p"], "neg": []}',
        "missing column",
        r"no query column; found: pos, neg; known names: query/anchor/question",
    ),
    (
        b'{"query": "q", "passage": "p"}',
        "missing column",
        r"no positive column; found: query, passage; known names:.*pos/",
    ),
    (b"{}", "missing column", r"no query and no positive column; found: none;"),
    (b'{"query": "", "pos": "p"}', "empty text", "query is empty"),
    (b'{"query": " \\n\\u00a0", "pos": "p"}', "empty text", "query is empty"),
    (b'{"query": null, "pos": "p"}', "wrong type", "query must be a text; found null"),
    (b'{"query": ["q"], "pos": "p"}', "wrong type", "query must be a text; found a list"),
    (b'{"query": "q", "pos": []}', "empty text", "pos holds no positive"),
    (b'{"query": "q", "pos": null}', "empty text", "pos holds no positive"),
    (b'{"query": "q", "pos": ""}', "empty text", "pos holds an empty text"),
    (b'{"query": "q", "pos": ["p", " "]}', "empty text", "pos holds an empty text"),
    (b'{"query": "q", "pos": {"text": "p"}}', "wrong type", "pos must be a text or a list of texts; found an object"),
    (b'{"query": "q", "pos": ["p", 3]}', "wrong type", "pos must hold texts only; found a number"),
    (b'{"query": "q", "pos": [["p"]]}', "wrong type", "pos must hold texts only; found a list"),
    (b'{"query": "q", "pos": "p", "neg": 0}', "wrong type", "neg must be a text or a list of texts; found a number"),
    (b'{"query": "q", "pos": "p", "pos_scores": [1, 2]}', "scores", "pos_scores holds 2 scores for 1 texts in pos"),
    (
        b'{"query": "q", "pos": "p", "neg": "n", "neg_scores": []}',
        "scores",
        "neg_scores holds 0 scores for 1 texts in neg",
    ),
    (b'{"query": "q", "pos": "p", "pos_scores": ["1"]}', "wrong type", "pos_scores must be a finite number"),
    (b'{"query": "q", "pos": "p", "pos_scores": [true]}', "wrong type", "pos_scores must be a finite number"),
    (b'{"query": "q", "pos": "p", "prompt": 1}', "wrong type", "prompt must be a text; found a number"),
]


@pytest.mark.parametrize(("line", "kind", "reason"), BAD)
def test_a_bad_row_stops_with_file_line_and_reason_or_is_counted(
    tmp_path: Path, line: bytes, kind: str, reason: str
) -> None:
    good = b'{"query": "q", "pos": "p"}\n'
    path = write(tmp_path / "a.jsonl", good + line + b"\n" + good)
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {reason}.*--on-bad-row skip"):
        list(iter_examples([path]))
    bad = BadRows()
    assert [place for place, _ in iter_examples([path], "skip", bad)] == [f"{path}:1", f"{path}:3"]
    assert bad.kinds == {kind: 1}
    assert bad.messages[0].startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("row", "negatives", "scores", "empty"),
    [
        ({"neg": [""]}, (), None, 1),
        ({"neg": ["\u00a0", None, "n", ""]}, ("n",), None, 3),
        ({"neg": ""}, (), None, 1),
        ({"neg": None}, (), None, 0),
        ({"neg": []}, (), None, 0),
        ({"neg": ["", "n", "m", ""], "neg_scores": [9, 1, 2, 8]}, ("n", "m"), (1.0, 2.0), 2),
        ({"neg": ["", "n", "m", None], "neg_scores": [None, 1, 2, None]}, ("n", "m"), (1.0, 2.0), 2),
        ({"neg": ["", "n", "m", ""], "neg_scores": [1, 2]}, ("n", "m"), (1.0, 2.0), 2),
        ({"neg": [""], "neg_scores": []}, (), (), 1),
        (
            {"negative_1": "n", "negative_2": None, "negative_3": "m", "neg_scores": [1, 0, 2]},
            ("n", "m"),
            (1.0, 2.0),
            0,
        ),
        ({"negative_1": "n", "negative_2": " ", "negative_3": "m"}, ("n", "m"), None, 1),
    ],
)
def test_an_empty_negative_is_none(
    tmp_path: Path, row: dict[str, Any], negatives: tuple[str, ...], scores: tuple[float, ...] | None, empty: int
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "q", "pos": "p"} | row])
    bad = BadRows()
    [(_, example)] = iter_examples([path], "stop", bad)
    assert (example.negatives, example.negative_scores, bad.empty_negatives) == (negatives, scores, empty)
    assert not bad.kinds
    table = ExampleTable.from_files([path])
    assert (table.empty_negatives, table[0].negatives) == (empty, negatives)
    rows = {found: value for found, value, _ in audit(table).rows(8)}
    assert rows.get("empty negatives left out") == (str(empty) if empty else None)


def test_negatives_padded_with_empty_cells_in_csv_and_parquet(tmp_path: Path) -> None:
    csv = write(tmp_path / "a.csv", b'query,pos,neg,neg_scores\nq,p,"[""n"", """", """"]","[1, 0, 0]"\nq,p,,\n')
    columns = {"query": ["q"] * 2, "pos": ["p"] * 2, "neg": [["n", "", None], []], "neg_scores": [[1.0, 0.0, 0.0], []]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    for path in (csv, tmp_path / "a.parquet"):
        bad = BadRows()
        found = [(example.negatives, example.negative_scores) for _, example in iter_examples([path], "stop", bad)]
        assert found[0] == (("n",), (1.0,))
        assert found[1][0] == ()
        assert bad.empty_negatives == 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv"])
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows_is_bad_like_a_row(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / name, content if name != "a.csv" else b"")
    with pytest.raises(UserError, match="the file holds no rows"):
        list(iter_examples([path]))
    bad = BadRows()
    assert list(iter_examples([path], "skip", bad)) == []
    assert bad.kinds == {"empty file": 1}


def test_only_the_first_messages_are_kept_but_all_rows_are_counted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{}] * 50)
    bad = BadRows()
    assert list(iter_examples([path], "skip", bad)) == []
    assert bad.kinds == {"missing column": 50}
    assert len(bad.messages) == 20


def test_long_column_lists_are_cut(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"x" * 10_000: 1} | {f"c{i}": 1 for i in range(1000)}])
    with pytest.raises(UserError) as caught:
        list(iter_examples([path]))
    assert len(str(caught.value)) < 1000
