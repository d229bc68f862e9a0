"""What each kind of model gives and costs: one epoch with the defaults, but nothing of the base is kept.

The static model is distilled from the dense one of the same seed, and then trained. What is done already in
--output-dir is not done again.

python -m benchmarks.kinds --train-data medquad/train.jsonl.gz --eval-data medquad/dev --quick medquad/dev-small \\
    --output-dir build/kinds
"""

import argparse
import json
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recipes import MEASURE, biencoder
from benchmarks.workload import arguments, model_folder, report

DENSE, STATIC = "one vector", "one vector, static"
KINDS: dict[str, list[str]] = {
    DENSE: [],
    "a vector for each token": ["--heads", "multi"],
    "a weight for each word": ["--heads", "sparse"],
    "a weight for each word, queries from a table": ["--heads", "sparse", "--query-table"],
    "all three": ["--heads", "dense,sparse,multi"],
    STATIC: [],
}
SAMPLE = 1000  # documents whose size is measured


def train(asked: Namespace, kind: str, seed: int) -> Path:
    """The folder of the trained model."""
    folder: Path = asked.output_dir.resolve() / f"{kind.replace(' ', '-').replace(',', '')}-{seed}"
    if not (folder / "eval.json").exists():
        model = model_folder(asked)
        if kind == STATIC:
            model = f"{folder}.distilled"
            biencoder(["distill", "--model", str(train(asked, DENSE, seed)), "--output-dir", model], Path(model))
        command = ["train", "--model", model, "--train-data", str(asked.train_data.resolve())]
        command += ["--output-dir", str(folder), "--seed", str(seed), "--batch-size", str(asked.batch_size)]
        command += ["--query-max-len", str(asked.max_length), "--passage-max-len", str(asked.max_length)]
        command += ["--eval-data", str(asked.quick.resolve()), "--save-steps", "100000", "--eval-steps", "100000"]
        command += ["--keep-base", "0", "--no-general-guard", "--no-cross-validate"]
        command += [] if asked.max_steps is None else ["--max-steps", str(asked.max_steps)]
        biencoder([*command, *KINDS[kind]], folder)
    return folder


def measured(asked: Namespace, model: str, kept: Path) -> dict[str, Any]:
    """The queries by :data:`MEASURE`, also by its parts, the seconds of an evaluation, and a document's bytes."""
    if not kept.exists():
        from biencoder import Encoder
        from biencoder.data.files.beir import load_collection
        from biencoder.retrieval.evaluate import evaluate

        encoder = Encoder.load(model, precision="auto", max_length=asked.max_length)
        collection = load_collection(asked.eval_data)
        began = time.perf_counter()
        values = evaluate(encoder, collection).per_query
        seconds = time.perf_counter() - began
        parts = {name.removeprefix(f"{MEASURE}, "): values[name] for name in values if name.startswith(f"{MEASURE}, ")}
        some = encoder.represent_passages(collection.corpus_texts[:SAMPLE])
        size = (some if isinstance(some, np.ndarray) else some.vectors).nbytes / len(some)
        made = {"queries": values[MEASURE], "parts": parts, "seconds": seconds, "bytes": size}
        kept.write_text(json.dumps(made), encoding="utf-8")
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def compared(kind: str, found: list[dict[str, float]], dense: list[dict[str, float]]) -> list[str]:
    """Cells of a kind; the interval and p compare means of each query over the seeds with those of the dense model."""
    from biencoder.retrieval.comparing.significance import bootstrap_interval, paired_randomization_test

    own, other = (np.mean([[q for _, q in sorted(each.items())] for each in side], axis=0) for side in (found, dense))
    low, high = bootstrap_interval(other, own)
    means = [np.mean(list(each.values())) for each in found]
    return [
        kind,
        f"{own.mean():.4f}",
        f"{min(means):.4f} to {max(means):.4f}",
        f"{own.mean() - other.mean():+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        f"{float(paired_randomization_test(other, own)):.4f}",
    ]


def costs(found: list[dict[str, Any]], runs: list[Path]) -> list[str]:
    """Cells of what the models of a kind cost: the least of the seeds, for other work on the machine only adds."""
    from biencoder.report.run_files import read_run

    curves = [read_run(folder).curves for folder in runs]
    return [
        f"{min(each.training_seconds for each in curves):.0f}",
        f"{min(each.peak_bytes for each in curves if each.peak_bytes is not None) / 1e9:.2f}",
        f"{min(each['seconds'] for each in found):.0f}",
        f"{np.median([each['bytes'] for each in found]) / 1e3:.1f}",
    ]


def main() -> None:
    """Train, evaluate, print the table."""
    parser = arguments(__doc__ or "", batch_size=64, max_length=64, systems=())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--eval-data", type=Path, required=True, help="BEIR folder that belongs to the training data")
    parser.add_argument("--quick", type=Path, required=True, help="small BEIR folder that the runs themselves evaluate")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), help="names in this file; the dense one first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2], help="one run of each kind a seed")
    parser.add_argument("--max-steps", type=int, help="default: one epoch")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in asked.kinds}
    runs: dict[str, list[Path]] = {kind: [] for kind in asked.kinds}
    for seed in asked.seeds:
        for kind in asked.kinds:
            folder = train(asked, kind, seed)
            runs[kind].append(folder)
            found[kind].append(measured(asked, str(folder), Path(f"{folder}.measured.json")))
            print(kind, seed, f"{np.mean(list(found[kind][-1]['queries'].values())):.4f}", flush=True)
    rows, dense = [], [each["queries"] for each in found[asked.kinds[0]]]
    for kind in asked.kinds:
        rows.append(
            [*compared(kind, [each["queries"] for each in found[kind]], dense), *costs(found[kind], runs[kind])]
        )
        for part in found[kind][0].get("parts", {}):
            values = [each["parts"][part] for each in found[kind]]
            rows.append([*compared(f"{kind}, but only {part}", values, dense), "", "", "", ""])
    columns = ["a text becomes", MEASURE, "lowest to highest seed", "to the first", "95% interval", "p"]
    columns += ["training, s", "peak memory, GB", "evaluation, s", "KB a document"]
    report(asked, f"Kinds of models on {asked.eval_data.name}, seeds {asked.seeds}", columns, rows)


if __name__ == "__main__":
    main()
