import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash
from data_files import row, table_of, write, write_jsonl

from biencoder.data.files.records import iter_examples
from biencoder.data.table import ExampleTable, Ragged
from biencoder.errors import UserError

ROWS = [
    row("q0", "p0", "p1", neg=["n0"], pos_scores=[1, 2], neg_scores=[0.5]),
    row("q1", "p1"),
    row("q0", "p2", neg=["n1", "n2", "n3"], prompt="Find: "),
]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    table = table_of(tmp_path, ROWS)
    assert len(table) == 3
    assert list(table) == [example for _, example in iter_examples([tmp_path / "train.jsonl"])]  # type: ignore[call-overload]
    assert table[-1] == table[2]
    with pytest.raises(IndexError):
        table[3]


def test_more_rows_than_a_block(tmp_path: Path) -> None:
    count = 20_011
    table = table_of(tmp_path, [row(f"q{i}", f"p{i}", neg=[f"n{i}"] * (i % 3)) for i in range(count)])
    assert len(table) == count
    for i in (0, 1, 8191, 8192, 8193, 16_384, count - 1):
        assert (table[i].query, table[i].negatives) == (f"q{i}", (f"n{i}",) * (i % 3))
        assert table.location(i) == f"{tmp_path / 'train.jsonl'}:{i + 1}"


def test_locations_name_the_file(tmp_path: Path) -> None:
    first = write(tmp_path / "b.jsonl", b'\n{"query": "q", "pos": "p"}\n')
    second = write(tmp_path / "a.csv", "query,pos\nq,p\n")
    table = ExampleTable.from_files([first, second])
    assert [table.location(i) for i in range(2)] == [f"{first}:2", f"{second}:2"]
    assert table.files == (str(first), str(second))


def test_hashes_are_of_the_exact_texts(tmp_path: Path) -> None:
    table = table_of(tmp_path, ROWS)

    def hashes(*texts: str) -> list[int]:
        return [xxhash.xxh3_64_intdigest(text.encode()) for text in texts]

    assert table.query_hashes.tolist() == hashes("q0", "q1", "q0")
    assert table.positive_hashes.values.tolist() == hashes("p0", "p1", "p1", "p2")
    assert table.positive_hashes.offsets.tolist() == [0, 2, 3, 4]
    assert table.negative_hashes.values.tolist() == hashes("n0", "n1", "n2", "n3")
    assert table.negative_hashes.offsets.tolist() == [0, 1, 1, 4]
    assert table.max_negatives == 3


def test_a_selection_is_a_table_of_its_own(tmp_path: Path) -> None:
    table = table_of(tmp_path, ROWS)
    chosen = table.select(np.array([2, 0]))
    assert list(chosen) == [table[2], table[0]]  # type: ignore[call-overload]
    assert chosen.location(0) == table.location(2)
    assert chosen.negative_hashes.offsets.tolist() == [0, 3, 4]
    again = chosen.select(np.array([1]))
    assert again[0] == table[0]
    assert again.max_negatives == 1
    direct = table_of(tmp_path / "other", [ROWS[2], ROWS[0]])
    assert chosen.fingerprint == direct.fingerprint


def test_the_fingerprint_is_of_the_content_in_order(tmp_path: Path) -> None:
    table = table_of(tmp_path, ROWS)
    packed = write_jsonl(tmp_path / "other" / "x.jsonl.gz", ROWS)
    parts = [write_jsonl(tmp_path / f"part{i}.jsonl", [each]) for i, each in enumerate(ROWS)]
    assert ExampleTable.from_files([packed]).fingerprint == table.fingerprint
    assert ExampleTable.from_files(parts).fingerprint == table.fingerprint
    assert ExampleTable.from_files(parts[::-1]).fingerprint != table.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        row("q1", "p1 "),
        row("q1", "p1", neg=["p1"]),
        row("q1", "p1", prompt="Find: "),
        row("q1", "p1", prompt=""),
        row("q1", "p1", pos_scores=[0.1]),
    ],
)
def test_the_fingerprint_sees_every_part_of_a_row(tmp_path: Path, changed: dict[str, object]) -> None:
    table = table_of(tmp_path, ROWS)
    other = table_of(tmp_path / "other", [ROWS[0], changed, ROWS[2]])
    assert other.fingerprint != table.fingerprint


def test_a_passage_that_moves_between_rows_changes_the_fingerprint(tmp_path: Path) -> None:
    one = table_of(tmp_path / "1", [row("q", "a", "b"), row("q", "c")])
    other = table_of(tmp_path / "2", [row("q", "a"), row("q", "b", "c")])
    assert one.fingerprint != other.fingerprint


def test_skipped_rows_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"query": "q", "pos": "p"}\n{"query": ""}\noops\n{"query": "", "pos": "p"}\n')
    table = ExampleTable.from_files([path], on_bad_row="skip")
    assert len(table) == 1
    assert table.skipped == {"missing column": 1, "not JSON": 1, "empty text": 1}
    assert [message.split(":")[1] for message in table.bad_rows] == ["2", "3", "4"]
    with pytest.raises(UserError, match=r"a\.jsonl:2: "):
        ExampleTable.from_files([path])


def test_nothing_usable_is_an_error_that_shows_the_first_reason(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "t"}])
    with pytest.raises(UserError, match=r"no usable row in .*a\.jsonl; the first: .*:1: no query and no positive"):
        ExampleTable.from_files([path], on_bad_row="skip")


def test_no_temporary_file_is_left_even_while_the_table_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    table = table_of(tmp_path, ROWS)
    assert list(temporary.iterdir()) == []
    assert table[0].query == "q0"


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_a_full_temporary_folder_is_a_clear_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(f"q{i}", "p" * 200) for i in range(2000)])
    program = (
        "import resource, sys; from pathlib import Path; from biencoder.data.table import ExampleTable\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "ExampleTable.from_files([Path(sys.argv[1])])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert "UserError: cannot store the training data in" in result.stderr.splitlines()[-1]
    assert "set TMPDIR" in result.stderr


def test_medquad(medquad: Path) -> None:
    table = ExampleTable.from_files([medquad / "train.jsonl.gz"])
    assert len(table) == 13_211
    rng = np.random.default_rng(0)
    wanted = set(rng.integers(0, len(table), 50).tolist())
    for i, (_, example) in enumerate(iter_examples([medquad / "train.jsonl.gz"])):
        if i in wanted:
            assert table[i] == example


def test_ragged_take_repeats_and_reorders() -> None:
    ragged = Ragged(np.arange(6, dtype=np.uint64), np.array([0, 2, 2, 5, 6]))
    taken = ragged.take(np.array([2, 1, 0, 2]))
    assert taken.values.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert taken.offsets.tolist() == [0, 3, 3, 5, 8]
    assert ragged.owners().tolist() == [0, 0, 2, 2, 2, 3]
    assert ragged.take(np.array([], dtype=np.int64)).offsets.tolist() == [0]
