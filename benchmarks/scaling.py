"""How cost grows: seconds against tokens, batch, corpus and processes, and the exponents that fit them.

An exponent of 1 is linear: twice the size costs twice the time. Each size is measured in turn and again.

python -m benchmarks.scaling --train-data medquad/train.jsonl.gz --output-dir build/scaling
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import numpy as np

from benchmarks.systems import read_pairs
from benchmarks.workload import ROOT, arguments, measure, print_table, sample, save, workload

STEPS, SKIPPED = 4, 2
LENGTHS = (32, 64, 128, 256)
BATCHES = (16, 32, 64, 128)
CORPORA = (25_000, 50_000, 100_000, 200_000)
PROCESSES = (1, 2)
QUERIES, DIM = 64, 384


def train_seconds(asked: Namespace, rows: Path, *, batch_size: int, max_length: int) -> float:
    """Of a step, in one process."""
    work = replace(workload(asked, "biencoder", "scaling"), train_data=str(rows), max_steps=STEPS)
    shutil.rmtree(work.output_dir, ignore_errors=True)
    run = measure(replace(work, batch_size=batch_size, max_length=max_length))
    return batch_size / run.pairs_per_second(SKIPPED)


def search_seconds(corpus: np.ndarray, queries: np.ndarray) -> float:
    """Of a search for the top 10."""
    from biencoder.retrieval.search import search

    began = time.perf_counter()
    search(queries, corpus, 10)
    return time.perf_counter() - began


def ranks_seconds(asked: Namespace, rows: Path, processes: int) -> float:
    """Of a step of the same global batch over several processes, which share the machine's cores."""
    folder = asked.output_dir.resolve() / "scaling-ranks"
    shutil.rmtree(folder, ignore_errors=True)
    options = {
        "model": workload(asked, "", "base").model,
        "train-data": rows,
        "output-dir": folder,
        "batch-size": asked.batch_size,
        "max-steps": STEPS,
        "group-size": 1,
        "query-max-len": asked.max_length,
        "passage-max-len": asked.max_length,
        "device": "cpu",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "biencoder", "train", "--no-general-guard", "--no-cross-validate"]
    command += [*(w for name, value in options.items() for w in (f"--{name}", str(value)))]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ | threads)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps: list[float] = [record["seconds"] for record in records if "loss" in record and record["step"] > SKIPPED]
    return median(steps)


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The exponent e of seconds = c x size^e, by least squares over the logarithms."""
    return linear_regression([math.log(size) for size in sizes], [math.log(s) for s in seconds]).slope


def tokens_in(rows: Path, model: str, max_length: int) -> int:
    """Of all pairs, cut to ``max_length``."""
    from transformers import AutoTokenizer

    queries, passages = read_pairs(str(rows))
    ids = AutoTokenizer.from_pretrained(model)(queries + passages, truncation=True, max_length=max_length)["input_ids"]
    return sum(map(len, ids))


def main() -> None:
    """Measure, print the table."""
    parser = arguments(__doc__ or "", batch_size=32, max_length=128, systems=())
    parser.add_argument("--repeats", type=int, default=5, help="runs of each size")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    corpus = random.standard_normal((max(CORPORA), DIM), dtype=np.float32)
    queries = random.standard_normal((QUERIES, DIM), dtype=np.float32)
    with (
        sample(asked.train_data, STEPS * max(BATCHES)) as many,
        sample(asked.train_data, STEPS * asked.batch_size) as few,
    ):
        model = workload(asked, "", "base").model
        tokens = [tokens_in(few, model, length) // STEPS for length in LENGTHS]
        costs: dict[str, tuple[Sequence[int], Callable[[int], float]]] = {
            f"training step of {asked.batch_size} pairs, tokens": (
                tokens,
                lambda size: train_seconds(
                    asked, few, batch_size=asked.batch_size, max_length=LENGTHS[tokens.index(size)]
                ),
            ),
            f"training step, batch, {asked.max_length} tokens": (
                BATCHES,
                lambda size: train_seconds(asked, many, batch_size=size, max_length=asked.max_length),
            ),
            f"search by {QUERIES} queries, vectors": (CORPORA, lambda size: search_seconds(corpus[:size], queries)),
            f"training step of {asked.batch_size} pairs, processes": (
                PROCESSES,
                lambda size: ranks_seconds(asked, few, size),
            ),
        }
        results: list[dict[str, Any]] = []
        rows = []
        for name, (sizes, cost) in costs.items():
            seconds: dict[int, list[float]] = {size: [] for size in sizes}
            for _ in range(asked.repeats):
                for size in sizes:
                    seconds[size].append(cost(size))
            medians = [median(seconds[size]) for size in sizes]
            results.append({"cost": name, "seconds": seconds, "exponent": fit(sizes, medians)})
            shown = ", ".join(f"{size:,}: {s:.3g}" for size, s in zip(sizes, medians, strict=True))
            rows.append([name, shown, f"{results[-1]['exponent']:.2f}"])
            print(" | ".join(rows[-1]), flush=True)
            save(asked, "scaling", results)
    print_table(f"Scaling, {asked.repeats} runs of each size", ["cost, against", "seconds", "exponent"], rows)


if __name__ == "__main__":
    main()
