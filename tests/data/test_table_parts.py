"""The parts of a table outlive a killed reader, and the next one goes on after them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from data_files import row, write_jsonl
from fault_points import AtCall
from killed import kill_at

from biencoder.data import stored_rows, table_parts
from biencoder.data.table import ExampleTable
from biencoder.data.text import text_hash
from biencoder.errors import UserError

BLOCK, PART = 10, 20  # rows
ROWS: list[Any] = [
    {"query": f"q{i % 7}", "pos": [f"p{i}", f"p{i + 1}"][: 1 + i % 2], "neg": [f"n{j}" for j in range(i % 3)]}
    for i in range(95)
]
FIRST = [each["pos"][0] for each in ROWS]
SMALL = f"""
from biencoder.data import stored_rows, table, table_parts
stored_rows.BLOCK_ROWS, table_parts.PART_ROWS, table_parts.NAMED_FROM = {BLOCK}, {PART}, 0
"""
READ = f"""{SMALL}
read = table.ExampleTable.from_files([Path(sys.argv[1])], "skip")
print(read.fingerprint, len(read), read.skipped, read.location(70), *read.bad_rows)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, and parts that are small."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(stored_rows, "BLOCK_ROWS", BLOCK)
    monkeypatch.setattr(table_parts, "PART_ROWS", PART)
    monkeypatch.setattr(table_parts, "NAMED_FROM", 0)
    return folder


class KilledError(BaseException):
    """What no reader expects."""


def hashes(monkeypatch: pytest.MonkeyPatch, most: int = sys.maxsize) -> list[str]:
    """The texts that are read from now on; the reader is killed when it has read so many."""
    read: list[str] = []

    def counting(text: str) -> int:
        read.append(text)
        if len(read) > most:
            raise KilledError
        return text_hash(text)

    monkeypatch.setattr(stored_rows, "text_hash", counting)
    return read


def everything(table: ExampleTable) -> list[Any]:
    places = [(table[i], table.location(i)) for i in range(len(table))]
    return [table.fingerprint, table.skipped, table.bad_rows, table.empty_negatives, *places]


def test_the_reader_after_a_killed_one_goes_on(tmp_path: Path, temporary: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with path.open("a") as file:
        file.write('{"query": ""}\n')
    code = f"import sys; from pathlib import Path\n{READ}"
    command = [sys.executable, "-c", code, str(path)]
    whole = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert list(temporary.iterdir()) == []
    kill_at(AtCall("biencoder.data.stored_rows", "text_hash", 200), tmp_path, READ, path)
    (folder,) = temporary.iterdir()
    kept = {name for name in os.listdir(folder) if name.endswith(".json")}
    assert {"000000.json", "000001.json"} <= kept
    assert len(kept) < len(ROWS) // PART
    told = "import atexit; atexit.register(lambda: print(len(seen)))\nseen = []\n"
    counted = (
        "hashed = stored_rows.text_hash\nstored_rows.text_hash = lambda text: (seen.append(text), hashed(text))[1]\n"
    )
    code = f"import sys; from pathlib import Path\n{told}{SMALL}{counted}{READ}"
    *again, hashed = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert again == whole.splitlines()
    texts = sum(1 + len(each["pos"]) + len(each["neg"]) for each in ROWS[PART * len(kept) :])
    assert int(hashed) == texts
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet", "several"])
def test_each_kind_of_file_is_continued_at_its_row(
    kind: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if kind.startswith("jsonl"):
        write_jsonl(data / f"rows.{kind}", [*ROWS[:50], {"query": ""}, {"body": 1}, *ROWS[50:]])
    elif kind == "several":
        for number, start in enumerate(range(0, len(ROWS), 30)):
            write_jsonl(data / f"{number}.jsonl", ROWS[start : start + 30])
    elif kind == "csv":
        pacsv.write_csv(pa.table({"query": [each["query"] for each in ROWS], "pos": FIRST}), data / "rows.csv")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), data / "rows.parquet", row_group_size=17)
    with monkeypatch.context() as patched:
        texts = hashes(patched)
        whole = everything(ExampleTable.from_files([data], "skip"))
    for most in (30, 90, 170):
        with monkeypatch.context() as patched:
            hashes(patched, most)
            with pytest.raises(KilledError):
                ExampleTable.from_files([data], "skip")
        with monkeypatch.context() as patched:
            read = hashes(patched)
            assert everything(ExampleTable.from_files([data], "skip")) == whole
            assert len(read) <= len(texts) - most + PART * 5  # of a part that was not finished, if any
        assert list(temporary.iterdir()) == []


def killed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is killed when it has finished four parts."""
    with monkeypatch.context() as patched:
        hashes(patched, 250)
        with pytest.raises(KilledError):
            ExampleTable.from_files([path])


def test_parts_of_other_data_are_not_taken(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    killed(path, monkeypatch)
    changed = [{**ROWS[0], "query": "q9"}, *ROWS[1:]]
    write_jsonl(path, changed)
    os.utime(path, ns=(1, 1))
    assert ExampleTable.from_files([path])[0].query == "q9"
    assert len(list(temporary.iterdir())) == 1  # of the data as they were


def test_a_damaged_part_is_read_again(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    whole = everything(ExampleTable.from_files([path]))
    for name, content in (("000001.arrow", b"ARROW1"), ("000001.arrow", b""), ("000001.json", b"{")):
        killed(path, monkeypatch)
        (folder,) = temporary.iterdir()
        (folder / name).write_bytes(content)
        assert everything(ExampleTable.from_files([path])) == whole


def test_bad_data_leave_no_parts(tmp_path: Path, temporary: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*ROWS, {"query": ""}])
    with pytest.raises(UserError, match=r"rows\.jsonl:96: "):
        ExampleTable.from_files([path])
    assert list(temporary.iterdir()) == []


def test_a_folder_that_others_may_write_to_is_not_used(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    killed(path, monkeypatch)
    (folder,) = temporary.iterdir()
    folder.chmod(0o777)
    with monkeypatch.context() as patched:
        read = hashes(patched)
        ExampleTable.from_files([path])
    assert len(read) == sum(1 + len(each["pos"]) + len(each["neg"]) for each in ROWS)
    assert folder.exists()


def test_readers_at_the_same_time_do_not_disturb_each_other(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    whole = everything(ExampleTable.from_files([path]))
    add, others = table_parts.Parts.add, [True]

    def with_another(parts: table_parts.Parts, number: int, *words: Any) -> Any:
        if number == 2 and others.pop():
            others.append(False)
            assert everything(ExampleTable.from_files([path])) == whole  # and removes the parts of both
            assert not list(temporary.iterdir())
        return add(parts, number, *words)

    monkeypatch.setattr(table_parts.Parts, "add", with_another)
    assert everything(ExampleTable.from_files([path])) == whole
    assert list(temporary.iterdir()) == []


def test_little_data_have_no_parts(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_parts, "NAMED_FROM", 1 << 20)
    path = write_jsonl(tmp_path / "rows.jsonl", [row("q", "p")] * 50)
    killed_at_once = hashes(monkeypatch, 90)
    with pytest.raises(KilledError):
        ExampleTable.from_files([path])
    assert killed_at_once
    assert list(temporary.iterdir()) == []
