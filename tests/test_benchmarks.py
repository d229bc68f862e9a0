"""The benchmark that is run on a GPU, with toys on the CPU, so that it works when there is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
