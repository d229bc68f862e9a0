"""What each way of training is worth: nDCG@10 on an evaluation folder after the same steps on the same data.

Every recipe is trained with every seed by `biencoder train`; its queries are compared with those of plain training
by their means over the seeds. What is done already in --output-dir is not done again.

python -m benchmarks.recipes --train-data medquad/train.jsonl.gz --eval-data medquad/dev --output-dir build/recipes
"""

import argparse
import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workload import ROOT, arguments, model_folder, report

MEASURE = "ndcg@10"
PLAIN, BASE = "plain contrastive", "the model as it came"

# What each adds to the flags that all share; `{model}` is the base model.
RECIPES: dict[str, list[str]] = {
    PLAIN: ["--no-mask-false-negatives"],
    "false negatives masked": [],
    "two-way": ["--two-way"],
    "1 mined negative": ["--mine-negatives", "1", "--group-size", "2"],
    "4 mined negatives": ["--mine-negatives", "4", "--group-size", "5"],
    "8 mined negatives": ["--mine-negatives", "8", "--group-size", "9"],
    "4 mined, refreshed": ["--mine-negatives", "4", "--group-size", "5", "--refresh-negatives", "1"],
    "guided by the base": ["--guide", "{model}"],
    "nested dimensions": ["--dims", "128,64"],
    "LoRA": ["--lora-rank", "16", "--learning-rate", "5e-4"],
    "half of the base kept": ["--keep-base", "0.5"],
    "learning rate 2e-4": ["--learning-rate", "2e-4"],
    "temperature 0.05": ["--temperature", "0.05"],
}


def train(asked: Namespace, recipe: str, seed: int) -> Path:
    """The folder of the trained model."""
    folder: Path = asked.output_dir.resolve() / f"{recipe.replace(' ', '-').replace(',', '')}-{seed}"
    if (folder / "eval.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    model = model_folder(asked)
    command = [sys.executable, "-m", "biencoder", "train", "--model", model, "--output-dir", str(folder)]
    command += ["--train-data", str(asked.train_data.resolve()), "--seed", str(seed), "--epochs", str(asked.epochs)]
    command += ["--batch-size", str(asked.batch_size), "--learning-rate", str(asked.learning_rate)]
    command += ["--query-max-len", str(asked.max_length), "--passage-max-len", str(asked.max_length)]
    command += ["--temperature", str(asked.temperature)]
    command += [] if asked.max_steps is None else ["--max-steps", str(asked.max_steps)]
    command += [word.format(model=model) for word in RECIPES[recipe]]  # the last of a flag counts
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "w", encoding="utf-8") as log:
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=subprocess.STDOUT)
    return folder


def queries_of(asked: Namespace, model: str, kept: Path) -> dict[str, float]:
    """:data:`MEASURE` of each query of the evaluation folder."""
    if not kept.exists():
        from biencoder import Encoder
        from biencoder.data.beir import load_collection
        from biencoder.retrieval.evaluate import evaluate

        encoder = Encoder.load(model, precision="auto", max_length=asked.max_length)
        found = evaluate(encoder, load_collection(asked.eval_data, None)).per_query[MEASURE]
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found), encoding="utf-8")
    values: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return values


def row_of(recipe: str, by_seed: list[np.ndarray], plain: np.ndarray) -> list[str]:
    """Cells of a recipe: mean, lowest and highest seed, and the difference to plain training with interval and p."""
    from biencoder.retrieval.significance import bootstrap_interval, paired_randomization_test

    seeds = [float(values.mean()) for values in by_seed]
    mean = np.mean(by_seed, axis=0)
    low, high = bootstrap_interval(plain, mean)
    difference = float((mean - plain).mean())
    p = float(paired_randomization_test(plain, mean))
    spread = f"{min(seeds):.4f} to {max(seeds):.4f}"
    return [recipe, f"{np.mean(seeds):.4f}", spread, f"{difference:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{p:.4f}"]


def main() -> None:
    """Train, evaluate, print the table."""
    parser = arguments(__doc__ or "", batch_size=64, max_length=128, systems=())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(temperature=0.02)
    parser.add_argument("--eval-data", type=Path, required=True, help="BEIR folder")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="names in this file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2], help="one run of each recipe a seed")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the data")
    parser.add_argument("--max-steps", type=int, help="fewer, under a whole schedule")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="where the recipe has none of its own")
    asked = parser.parse_args()
    base = queries_of(asked, model_folder(asked), asked.output_dir / "base.queries.json")
    order = sorted(base)
    results: dict[str, list[np.ndarray]] = {BASE: [np.array([base[query] for query in order])]}
    for seed in asked.seeds:
        for recipe in dict.fromkeys([PLAIN, *asked.recipes]):
            folder = train(asked, recipe, seed)
            values = queries_of(asked, str(folder), Path(f"{folder}.queries.json"))
            results.setdefault(recipe, []).append(np.array([values[query] for query in order]))
            print(f"{recipe}, seed {seed}: {MEASURE} {results[recipe][-1].mean():.4f}", flush=True)
    plain = np.mean(results[PLAIN], axis=0)
    columns = ["recipe", MEASURE, "lowest to highest seed", "to plain", "95% interval", "p"]
    steps = f"{asked.max_steps} steps" if asked.max_steps else f"{asked.epochs} epochs"
    rows: list[Any] = [row_of(recipe, by_seed, plain) for recipe, by_seed in results.items()]
    report(asked, f"Recipes on {asked.eval_data.name} after {steps}, seeds {asked.seeds}", columns, rows)


if __name__ == "__main__":
    main()
