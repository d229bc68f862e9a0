import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub, Repository

from biencoder.data.files import hub_copy
from biencoder.data.files.hub_copy import local_copy, pinned
from biencoder.data.rewrite import rows_of
from biencoder.data.table import ExampleTable
from biencoder.errors import UserError

ROWS = [{"question": f"q{i}", "answer": f"p{i}", "source": i} for i in range(2500)]
README = b"""---
configs:
- config_name: easy
  data_files: [{split: train, path: easy/train.jsonl}, {split: dev, path: easy/dev.jsonl}]
- config_name: hard
  data_files: [{split: test, path: hard.jsonl}]
---
"""


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def table(address: str) -> ExampleTable:
    return ExampleTable.from_files([Path(address)])


@pytest.fixture(autouse=True)
def _filled(hub: FakeHub) -> None:
    hub.data_sets["org/plain"] = Repository({"train.jsonl": lines(ROWS), "test.jsonl": lines(ROWS[:7])})
    easy = {"easy/train.jsonl": lines(ROWS[:3]), "easy/dev.jsonl": lines(ROWS[:2])}
    hub.data_sets["org/both"] = Repository({"README.md": README, "hard.jsonl": lines(ROWS[:5]), **easy})
    hub.data_sets["org/parquet"] = Repository({"data/train-00000-of-00001.parquet": parquet(ROWS[:9])})


def test_rows_on_the_hub_are_those_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file.jsonl").write_bytes(lines(ROWS))
    found = table("hf:org/plain")
    assert found.fingerprint == ExampleTable.from_files([tmp_path / "file.jsonl"]).fingerprint
    assert found.location(1234) == "hf:org/plain:1235"
    place, row, _ = next(rows_of([Path("hf:org/plain")], "stop"))
    assert (place, row) == ("hf:org/plain:1", ROWS[0])  # all columns, also those that training does not need


@pytest.mark.parametrize(
    ("address", "rows"),
    [
        ("hf:org/plain", 2500),
        ("hf:org/plain:test", 7),
        ("hf:org/plain:default:test", 7),
        ("hf:org/plain@main:test", 7),
        ("hf:org/both:easy", 3),
        ("hf:org/both:easy:dev", 2),
        ("hf:org/both:hard", 5),
        ("hf:org/parquet", 9),
    ],
)
def test_an_address_names_configuration_and_split(address: str, rows: int) -> None:
    assert len(table(address)) == rows


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf:org/plain:no", "hf:org/plain:no: has no split no; it has: train, test"),
        ("hf:org/plain@0ld", "has no revision 0ld"),
        ("hf:org/both", "has several configurations; name one of them: easy, hard"),
        ("hf:org/both:no:dev", "has no configuration no; it has: easy, hard"),
        ("hf:org/both:hard:dev", "has no split dev; it has: test"),
        ("hf:org/other", "no such data set, or does not show it to you"),
        ("hf:a/b/c", "no such data set"),
        ("hf:", "write a data set on the Hub as hf:NAME"),
        ("hf:org/plain:a:b:c", "write a data set on the Hub as hf:NAME"),
        ("hf:org/labels", "hf:org/labels: no query column and no positive column|no query and no positive column"),
        ("hf:org/empty", "hf:org/empty: "),
    ],
)
def test_an_address_that_names_nothing_to_train_on(hub: FakeHub, address: str, message: str) -> None:
    hub.data_sets["org/labels"] = Repository({"train.jsonl": lines([{"image": 1, "label": 2}])})
    hub.data_sets["org/empty"] = Repository({"notes.xyz": b"no data"})
    with pytest.raises(UserError, match=message) as raised:
        table(address)
    assert "\n" not in str(raised.value)


def test_a_copy_serves_without_a_network(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    address = pinned(Path("hf:org/plain:test"))
    hub.close()
    local_copy.cache_clear()
    assert len(table("hf:org/plain:test")) == 7
    assert "hf:org/plain:test: the Hugging Face Hub cannot be reached; the copy of revision" in caplog.text
    assert len(table(address)) == 7
    with pytest.raises(UserError, match=r"hf:org/plain: .* cannot be reached .*, and no earlier run has left a copy"):
        table("hf:org/plain")
    with pytest.raises(UserError, match="no earlier run has left a copy"):  # of this commit
        table(f"hf:org/plain@{'0' * 40}:test")


def test_a_pinned_copy_asks_the_hub_nothing_and_another_commit_is_another_copy(hub: FakeHub) -> None:
    old = pinned(Path("hf:org/plain:test"))
    before = table("hf:org/plain:test").fingerprint
    hub.data_sets["org/plain"].files["test.jsonl"] = lines(ROWS[10:14])
    assert len(table("hf:org/plain:test")) == 7  # one process reads one revision
    local_copy.cache_clear()
    assert len(table("hf:org/plain:test")) == 4
    asked = len(hub.paths)
    assert table(old).fingerprint == before
    assert len(hub.paths) == asked


def test_a_folder_of_that_name_is_not_read_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "plain").mkdir(parents=True)
    (tmp_path / "org" / "plain" / "train.jsonl").write_bytes(lines(ROWS[:1]))
    monkeypatch.chdir(tmp_path)
    assert len(table("hf:org/plain")) == 2500


def test_a_stream_that_breaks_off_leaves_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def with_format(self, _: str) -> "Broken":
            return self

        def iter(self, batch_size: int) -> Iterator[pa.Table]:
            yield pa.Table.from_pylist(ROWS[:batch_size])
            raise TimeoutError("the other end is silent")

    with monkeypatch.context() as patch:
        patch.setattr(hub_copy, "_open", lambda *_: Broken())
        with pytest.raises(UserError, match=r"stopped after 1,000 rows \(the other end is silent\)"):
            table("hf:org/plain")
    assert len(table("hf:org/plain")) == 2500


def test_columns_that_change_their_kind(hub: FakeHub) -> None:
    numbers = [{"question": f"q{i}", "answer": f"p{i}", "source": {"deep": i}} for i in range(2500)]
    hub.data_sets["org/mixed"] = Repository({"a.jsonl": lines(ROWS), "b.jsonl": lines(numbers)})
    with pytest.raises(UserError, match=r"hf:org/mixed: (the columns after row|reading from the Hub stopped after)"):
        table("hf:org/mixed")


def test_the_command_line_reads_from_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    words = ["-m", "biencoder", "check", "--train-data", "hf:org/both:easy"]
    env = hub.environment(tmp_path / "home")
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=True)
    assert "hf:org/both:easy: copying revision" in done.stderr
    assert re.search(r"rows +3\b", done.stdout), done.stdout


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"hf:org/plain needs the package datasets.*biencoder\[datasets\]"):
        table("hf:org/plain")
