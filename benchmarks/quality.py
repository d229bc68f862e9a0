"""One epoch by each system on the same pairs, then nDCG@10 by one evaluator, and the time of the training alone.

The time to a given nDCG@10 is that of the shortest run that reaches it: ask for a part of an epoch by --epochs.

python -m benchmarks.quality --train-data medquad/train.jsonl.gz --eval-data medquad/dev --output-dir build/quality
"""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.systems import read_pairs
from benchmarks.workload import arguments, as_dict, measure, report, save, workload

SYSTEMS = ("biencoder", "sentence-transformers fp32", "sentence-transformers bf16")


def evaluate(model: str, data: Path, max_length: int, output: Path) -> dict[str, float]:
    """The measures of a model folder on a BEIR folder, by ``biencoder evaluate``; what ``output`` holds is kept."""
    if output.exists():
        kept: dict[str, float] = json.loads(output.read_text(encoding="utf-8"))["metrics"]
        return kept
    command = [sys.executable, "-m", "biencoder", "evaluate", "--model", model, "--data", str(data)]
    command += ["--max-length", str(max_length), "--precision", "auto", "--output", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    metrics: dict[str, float] = json.loads(output.read_text(encoding="utf-8"))["metrics"]
    return metrics


def main() -> None:
    """Train, evaluate, print the table."""
    parser = arguments(__doc__ or "", batch_size=64, max_length=128, systems=SYSTEMS)
    parser.add_argument("--eval-data", type=Path, required=True, help="BEIR folder")
    parser.add_argument("--epochs", type=float, default=1.0, help="0.25 for a quarter of one, under a whole schedule")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="at its peak")
    parser.add_argument("--seed", type=int, default=42, help="of order and dropout")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    base = workload(asked, "", "base")
    steps = math.ceil(asked.epochs * len(read_pairs(base.train_data)[0]) / asked.batch_size)
    before = evaluate(base.model, asked.eval_data, asked.max_length, Path(f"{base.output_dir}.eval.json"))
    results: list[dict[str, Any]] = [{"system": "the model as it came", "metrics": before}]
    rows = [["the model as it came", f"{before['ndcg@10']:.4f}", f"{before['mrr@10']:.4f}", "", "", "", "", ""]]
    for system in asked.systems:
        work = workload(asked, system, f"quality-{system}")
        work = replace(work, max_steps=steps, learning_rate=asked.learning_rate, seed=asked.seed)
        shutil.rmtree(work.output_dir, ignore_errors=True)
        evaluated = Path(f"{work.output_dir}.eval.json")
        evaluated.unlink(missing_ok=True)
        run = measure(work)
        metrics = evaluate(work.output_dir, asked.eval_data, asked.max_length, evaluated)
        results.append({"system": system, "metrics": metrics, **as_dict(run)})
        rows.append(
            [
                system,
                f"{metrics['ndcg@10']:.4f}",
                f"{metrics['mrr@10']:.4f}",
                str(len(run.step_ends)),
                f"{run.training_seconds:.0f}",
                f"{run.seconds:.0f}",
                f"{run.peak_bytes / 1e9:.2f}",
                f"{run.disturbance:.0%}",
            ]
        )
        print(f"{system}: nDCG@10 {metrics['ndcg@10']:.4f} after {run.training_seconds:.0f} s", flush=True)
        save(asked, "quality", results)
    columns = [
        "system",
        "nDCG@10",
        "MRR@10",
        "steps",
        "training, s",
        "whole process, s",
        "peak memory, GB",
        "disturbed",
    ]
    title = (
        f"Quality on {asked.eval_data.name} after {asked.epochs:g} epochs at {asked.learning_rate:g}, seed {asked.seed}"
    )
    report(asked, title, columns, rows)


if __name__ == "__main__":
    main()
