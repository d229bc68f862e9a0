"""Benchmarks that take long or need a GPU, with toys on the CPU, so that they work when they are needed."""

import json
import mmap
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import rows
from benchmarks.scaling import fit

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    folder = tmp_path / "gpu"
    command = [sys.executable, "-m", "benchmarks.gpu", "--output-dir", str(folder), "--device", "cpu", "--small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads((folder / "gpu.json").read_text())
    assert len(result["checks"]) > 20
    assert all(check["passed"] for check in result["checks"])
    systems = [row["system"] for row in result["rows"]]
    assert systems.count("biencoder") == 3
    assert systems.count("sentence-transformers bf16") == 3
    assert "| encoding, MiniLM-L6, 256 tokens | biencoder |" in (folder / "gpu.md").read_text()


@pytest.mark.parametrize("name", ["table", "batches", "clusters", "mining"])
def test_growth_with_rows_is_measured(name: str, tmp_path: Path) -> None:
    cost = rows.costs()[name]
    for size in (200, 400):
        cost.found[size] = [vars(cost.work(tmp_path, size))]
    _, shown, _, exponent, hours, bytes_a_row, gigabytes = replace(cost, switch=0).row()
    assert shown.startswith("200: ")
    seconds = [run[0]["seconds"] for run in cost.found.values()]
    slope = fit([200, 400], seconds)
    assert float(exponent) == pytest.approx(slope, abs=0.01)
    assert float(hours) == pytest.approx(seconds[1] * (rows.FAR / 400) ** slope / 3600, rel=0.1)
    assert float(bytes_a_row) >= 0
    assert float(gigabytes) >= 0


def test_the_memory_of_a_process_is_its_own_without_files() -> None:
    with rows.watched() as found:
        held = mmap.mmap(-1, 64_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # malloc may have some from before
        np.frombuffer(held, np.uint8)[:] = 1
        time.sleep(0.1)
    assert found.memory >= len(held)
    assert found.seconds >= 0.1
