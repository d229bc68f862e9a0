import gzip
from pathlib import Path

import pytest

from biencoder.errors import UserError
from biencoder.retrieval.texts import Text, in_batches, read_texts, summarize


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["texts.txt", "texts.txt.gz", "texts"])
def test_a_text_a_line(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "one\n\ntwo \u2028 half\r\n{not json\nlast")
    assert list(read_texts(path)) == [
        Text("1", "one"),
        Text("2", ""),
        Text("3", "two \u2028 half"),
        Text("4", "{not json"),
        Text("5", "last"),
    ]


def test_the_end_of_the_last_line_makes_no_further_text(tmp_path: Path) -> None:
    assert len(list(read_texts(write(tmp_path / "a.txt", "one\n")))) == 1
    assert len(list(read_texts(write(tmp_path / "b.txt", "one\n\n")))) == 2


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.jsonl.gz", "TEXTS.JSON", "texts.ndjson"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    rows = (
        '\ufeff{"_id": "d1", "title": "T", "text": "x"}\n{"_id": 7, "title": "", "text": "y"}\n\n{"text": "", "n": 1}\n'
    )
    path = write(tmp_path / name, rows)
    assert list(read_texts(path)) == [Text("d1", "T x"), Text("7", "y"), Text("4", "")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '["x"]\n', r"a\.jsonl:1: not a JSON object"),
        ("a.jsonl", '{"body": "x", "id": 1}\n', r"a\.jsonl:1: needs `text`.*found: body, id"),
        ("a.jsonl", '{"text": null}\n', r"a\.jsonl:1: needs `text`"),
        ("a.jsonl", '{"text": "x", "title": 3}\n', r"a\.jsonl:1: needs `text`"),
        ("a.jsonl", '{"text": "x", "_id": [1]}\n', r"a\.jsonl:1: `_id` must be a string"),
        ("a.txt", b"good\nbad \xff\n", r"a\.txt:2: not UTF-8"),
        ("a.txt", "", r"a\.txt: the file holds no text"),
        ("a.jsonl", "\n\n", r"a\.jsonl: the file holds no text"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        summarize(write(tmp_path / name, content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            summarize(path)


def test_the_fingerprint_is_of_the_texts_and_their_order(tmp_path: Path) -> None:
    base = summarize(write(tmp_path / "a.txt", "one\ntwo\n"))
    assert base.rows == 2
    for name, content in [
        ("b.txt.gz", "one\ntwo"),
        ("c.jsonl", '{"_id": "x", "text": "one"}\n{"text": "two"}\n'),
    ]:
        assert summarize(write(tmp_path / name, content)) == base
    for content in ("two\none\n", "one\ntwo\n\n", "onetwo\n\n", "on\netwo\n"):
        assert summarize(write(tmp_path / "d.txt", content)).fingerprint != base.fingerprint


def test_batches() -> None:
    rows = [Text(str(i), "") for i in range(5)]
    assert [len(batch) for batch in in_batches(rows, 2)] == [2, 2, 1]
    assert [row for batch in in_batches(rows, 2) for row in batch] == rows
    assert list(in_batches([], 2)) == []
