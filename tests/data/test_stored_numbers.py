"""Numbers of many rows lie in files, which nobody sees and which a kill does not leave behind."""

import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import row, write_jsonl
from fault_points import AtCall
from killed import kill_at
from numpy.typing import NDArray

from biencoder.data import stored_numbers
from biencoder.data.plan.sampling import Sampler
from biencoder.data.stored_numbers import StoredNumbers, counted, kept, taken
from biencoder.data.table import ExampleTable

ROWS = [
    row(f"q{i % 700}", f"p{i}", *[f"p{i + 1}"] * (i % 3 == 0), neg=[f"n{j}" for j in range(i % 4)], pos_scores=None)
    for i in range(1000)
]


def in_a_file(numbers: NDArray[Any]) -> bool:
    base: Any = numbers
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.base if isinstance(base, np.ndarray) else getattr(base, "obj", None)
    return base is not None


def test_few_numbers_are_in_memory_and_many_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_numbers, "BLOCK", 10)
    numbers = StoredNumbers(np.int64)
    for start in range(0, 9, 3):
        numbers.extend(np.arange(start, start + 3))
    few = numbers.finished()
    assert (few.tolist(), in_a_file(few)) == (list(range(9)), False)
    numbers.extend(np.arange(9, 35))
    many = numbers.finished()
    assert (many.tolist(), in_a_file(many), many.dtype) == (list(range(35)), True, np.dtype(np.int64))
    places = np.arange(35)[::-1]
    assert (taken(many, places).tolist(), in_a_file(taken(many, places))) == (places.tolist(), True)
    assert not in_a_file(taken(many, places[:10]))
    assert (counted(35).tolist(), in_a_file(counted(35))) == (list(range(35)), True)
    assert in_a_file(kept(np.arange(11)))
    assert StoredNumbers(np.uint64).finished().tolist() == []


def test_a_table_of_many_rows_is_the_same_table_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    chosen = np.random.default_rng(0).permutation(len(ROWS))[:800]

    def facts() -> tuple[list[NDArray[Any]], list[Any]]:
        whole = ExampleTable.from_files([path])
        part = whole.select(chosen)
        sampler = Sampler(part, batch_size=16, group_size=3, seed=4)
        plans = [sampler.plan(step) for step in (0, 7, 60)]
        arrays = [
            array
            for table in (whole, part)
            for ragged in (table.positive_hashes, table.negative_hashes, table.answers)
            for array in (ragged.values, ragged.offsets, table.query_hashes, table.data_set, table.query_numbers)
        ]
        return arrays, [*arrays, *(plan.rows for plan in plans), part[5], part.location(9), part.fingerprint]

    arrays, wanted = facts()
    assert not any(map(in_a_file, arrays))
    monkeypatch.setattr(stored_numbers, "BLOCK", 100)
    monkeypatch.setattr("biencoder.data.table.BLOCK", 100)
    monkeypatch.setattr("biencoder.data.stored_rows.BLOCK_ROWS", 90)
    arrays, found = facts()
    assert all(map(in_a_file, arrays))
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one, other)


READ = """
from biencoder.data import stored_numbers, table
stored_numbers.BLOCK = 100
print(len(table.ExampleTable.from_files([Path(sys.argv[1])])))
"""


def test_a_killed_reader_of_little_data_leaves_nothing_and_the_next_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    kill_at(AtCall("biencoder.data.stored_rows", "text_hash", 2500), tmp_path, READ, path)
    assert list((tmp_path / "tmp").iterdir()) == []
    code = f"import sys; from pathlib import Path\n{READ}"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout == f"{len(ROWS)}\n", done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_a_full_folder_is_a_clear_error(tmp_path: Path) -> None:
    code = "import numpy as np; from biencoder.data.stored_numbers import counted; counted(10_000_000)"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, env=environment, check=False)
    last = done.stderr.splitlines()[-1]
    assert f"UserError: cannot store the training data in {tmp_path}: File too large; set TMPDIR to" in last
    assert list(tmp_path.iterdir()) == []
