"""The files that mining reads and writes."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hashing_encoder import HashingEncoder

from biencoder import MineConfig, UserError, mine_hard_negatives
from biencoder.commands.data.mine import run
from biencoder.data.table import ExampleTable
from biencoder.model.representations.ragged import Vectors

WORDS = ["red", "green", "blue", "black", "white", "grey"]
ROWS: list[dict[str, Any]] = [
    {"id": 1, "query": "red green", "pos": ["red green blue"], "neg": ["grey red"], "note": {"kept": True}},
    {"id": 2, "anchor": "blue black", "positive": "blue black white", "negative_1": "blue grey", "negative_2": "white"},
    {"id": 3, "query": "white", "pos": ["white grey"], "pos_scores": [3.0], "neg": ["red"], "neg_scores": [1.0]},
    {"id": 4, "query": "RED  green", "pos": ["red green white"]},
]
NEW = {"neg", "neg_scores"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()]


def config(folder: Path, **values: Any) -> MineConfig:
    given: dict[str, Any] = {
        "model": "m",
        "train_data": folder / "in.jsonl",
        "output": folder / "out.jsonl",
        "max_share": 10,
    }
    return MineConfig(**given | values)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> HashingEncoder:
    encoder = HashingEncoder(dim=256)
    monkeypatch.setattr("biencoder.retrieval.mining.mine_files.load_encoder", lambda _: encoder)
    return encoder


def score(query: str, passage: str) -> float:
    encoder = HashingEncoder(dim=256)
    return float(encoder.encode_queries([query])[0] @ encoder.encode_passages([passage])[0])


@pytest.mark.parametrize("existing", ["keep", "replace"])
@pytest.mark.usefixtures("encoder")
def test_rows_come_back_in_order_with_all_their_columns(
    existing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="biencoder")
    files = (write(tmp_path / "b.jsonl", ROWS[:3]), write(tmp_path / "a.jsonl", ROWS[3:]))
    mine_hard_negatives(config(tmp_path, train_data=files, existing=existing))
    rows = read(tmp_path / "out.jsonl")
    for before, after in zip(ROWS, rows, strict=True):
        gone = {"negative_1", "negative_2", "pos_scores"} & set(before)
        assert [key for key in after if key not in NEW] == [key for key in before if key not in NEW | gone]
        assert all(after[key] == before[key] for key in set(before) - NEW - gone)
        query = before.get("query") or before["anchor"]
        assert after["neg_scores"] == pytest.approx([score(query, text) for text in after["neg"]], abs=1e-6)
    owns = [["grey red"], ["blue grey", "white"], ["red"], []]
    for own, row in zip(owns, rows, strict=True):
        assert (row["neg"][: len(own)] == own) == (existing == "keep" or not own)
        assert len(set(row["neg"])) == len(row["neg"]) > len(own)
    assert "red green white" not in rows[0]["neg"]
    assert "red green blue" not in rows[3]["neg"]
    assert "pos_scores of 1 rows are left out" in caplog.text


@pytest.mark.usefixtures("encoder")
def test_what_is_written_trains(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", ROWS)
    mined = mine_hard_negatives(config(tmp_path, output=tmp_path / "out.jsonl.gz"))
    table = ExampleTable.from_files([tmp_path / "out.jsonl.gz"])
    for i in range(len(ROWS)):
        assert table[i].negatives == tuple(text for text, _ in mined.negatives(i, mined.table[i]))
        assert table[i].positive_scores is None
        assert table[i].negative_scores is not None


@pytest.mark.usefixtures("encoder")
def test_parquet_and_csv_keep_their_columns(tmp_path: Path) -> None:
    columns = {"id": [7], "query": ["red"], "positive": ["red blue"], "negative_1": ["grey"], "size": [1.5]}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text('query,answer,negative,lang\nblue,"[""blue black"", ""blue red""]",,en\n')
    mine_hard_negatives(config(tmp_path, train_data=(tmp_path / "in.parquet", tmp_path / "in.csv"), negatives=1))
    first, second = read(tmp_path / "out.jsonl")
    assert list(first) == ["id", "query", "positive", "size", "neg", "neg_scores"]
    assert list(second) == ["query", "answer", "lang", "neg", "neg_scores"]
    assert second["answer"] == ["blue black", "blue red"]
    assert (first["neg"][0], len(first["neg"]), len(second["neg"])) == ("grey", 2, 1)


@pytest.mark.usefixtures("encoder")
def test_a_column_that_json_cannot_hold(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query": ["red"], "positive": ["blue"], "raw": [b"\xff"]}), tmp_path / "in.parquet")
    with pytest.raises(UserError, match=r"in\.parquet:1: JSON cannot hold one of its columns"):
        mine_hard_negatives(config(tmp_path, train_data=tmp_path / "in.parquet"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


@pytest.mark.usefixtures("encoder")
def test_bad_rows_are_left_out_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in.jsonl", [*ROWS[:2], {"query": "no positive"}, *ROWS[2:]])
    with pytest.raises(UserError, match=r"in\.jsonl:3"):
        run(config(tmp_path))
    run(config(tmp_path, on_bad_row="skip"))
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == [1, 2, 3, 4]
    assert "4 rows (1 bad ones left out)" in capsys.readouterr().out


@pytest.mark.usefixtures("encoder")
def test_stages_and_examples_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in.jsonl", ROWS)
    (tmp_path / "corpus").mkdir()
    write(
        tmp_path / "corpus" / "corpus.jsonl",
        [
            {"_id": str(i), "title": "", "text": text}
            for i, text in enumerate([*WORDS, "WHITE grey", "red", "red grey"])
        ],
    )
    run(config(tmp_path, corpus=tmp_path / "corpus", negatives=2, margin=0.1))
    out = capsys.readouterr().out
    assert "4 rows, 8 candidates: the distinct passages among 9" in out
    assert "3 distinct positives are not in the corpus" in out
    lines = [re.fullmatch(r"(.+?)((?:  +[\d,]+)+)", line) for line in out.splitlines()]
    stages = {line[1]: [int(number) for number in line[2].split()] for line in lines if line}
    assert stages["found by the search"] == [32]
    assert stages["known positive of the query"] == [1, 31]
    assert stages["the query itself"] == [1, 30]
    assert "less than 0.1 below the positive" in stages
    assert stages["top 2 of a row are enough"][1] == sum(len(row["neg"]) for row in read(tmp_path / "out.jsonl")) - 4
    assert "(0.0%) got fewer than 2 negatives" in out
    assert out.count("\nquery  ") == 3
    assert "positive  0.8165 red green blue" in out


@pytest.mark.parametrize("changed", [ROWS[:3], [*ROWS, ROWS[0]], [ROWS[1], *ROWS[1:]]])
def test_a_file_that_changes_meanwhile_is_refused(
    changed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "in.jsonl", ROWS)

    class Meddler(HashingEncoder):
        def represent_queries(self, *args: Any, **kwargs: Any) -> Vectors:
            write(path, changed)
            return super().represent_queries(*args, **kwargs)

    monkeypatch.setattr("biencoder.retrieval.mining.mine_files.load_encoder", lambda _: Meddler(dim=256))
    with pytest.raises(UserError, match=r"in\.jsonl:\d: the file changed while"):
        mine_hard_negatives(config(tmp_path))
    assert not (tmp_path / "out.jsonl").exists()
