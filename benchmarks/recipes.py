"""What each way of training is worth: nDCG@10 on an evaluation folder after the same steps on the same data.

Every recipe is trained with every seed by `biencoder train`; its queries are compared with those of plain training
by their means over the seeds. What is done already in --output-dir is not done again.

Negatives are mined once, with the base model, and a recipe takes the first of them; the teacher to distil from is the
model of the recipe TEACHER, of the first seed.

zcat medquad/train.jsonl.gz | awk 'NR % 10 == 1' > tenth.jsonl
python -m benchmarks.recipes --train-data tenth.jsonl --epochs 2 --max-length 32 \\
    --eval-data medquad/dev --output-dir build/recipes
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
PLAIN, BASE, NESTED = "plain contrastive", "the model as it came", "nested dimensions"
DIMS = (128, 64)

TEACHER = "clusters of 16"
AT_RANDOM = ["--no-two-way", "--cluster-size", "1"]
# What each adds to the flags that all share; `{model}` is the base model, `{mined N}` and `{scored}` are training data.
RECIPES: dict[str, list[str]] = {
    PLAIN: [*AT_RANDOM, "--no-mask-false-negatives"],
    "false negatives masked": AT_RANDOM,
    "clusters of 4": ["--no-two-way", "--cluster-size", "4"],
    TEACHER: ["--no-two-way", "--cluster-size", "16"],
    "clusters of 64": ["--no-two-way", "--cluster-size", "64"],
    "two-way": ["--two-way", "--cluster-size", "1"],
    "1 mined negative": [*AT_RANDOM, "--train-data", "{mined 1}"],
    "4 mined negatives": [*AT_RANDOM, "--train-data", "{mined 4}"],
    "8 mined negatives": [*AT_RANDOM, "--train-data", "{mined 8}", "--group-size", "9"],
    "4 mined, refreshed": [*AT_RANDOM, "--mine-negatives", "4", "--refresh-negatives", "1"],
    "distilled from clusters of 16": [*AT_RANDOM, "--train-data", "{scored}"],
    "guided by the base": [*AT_RANDOM, "--guide", "{model}"],
    NESTED: [*AT_RANDOM, "--dims", ",".join(map(str, DIMS))],
    "LoRA": [*AT_RANDOM, "--lora-rank", "16"],
    "learning rate 5e-5": [*AT_RANDOM, "--learning-rate", "5e-5"],
    "learning rate 2e-4": [*AT_RANDOM, "--learning-rate", "2e-4"],
    "half of the base kept": [*AT_RANDOM, "--keep-base", "0.5", "--learning-rate", "1e-4"],
    "the defaults": [],
    "the defaults, 1 mined negative": ["--train-data", "{mined 1}"],
    "the defaults, 4 mined negatives": ["--train-data", "{mined 4}"],
}
MOST_MINED = 8


def train(asked: Namespace, recipe: str, seed: int) -> Path:
    """The folder of the trained model."""
    folder: Path = asked.output_dir.resolve() / f"{recipe.replace(' ', '-').replace(',', '')}-{seed}"
    if (folder / "eval.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    command = ["train", "--model", model_folder(asked), "--train-data", str(asked.train_data.resolve())]
    command += ["--output-dir", str(folder), "--seed", str(seed), "--epochs", str(asked.epochs)]
    command += ["--batch-size", str(asked.batch_size)]
    command += [] if asked.learning_rate is None else ["--learning-rate", str(asked.learning_rate)]
    command += ["--query-max-len", str(asked.max_length), "--passage-max-len", str(asked.max_length)]
    command += ["--temperature", str(asked.temperature), "--save-steps", "100000"]
    command += ["--keep-base", "0", "--no-general-guard", "--no-cross-validate"]  # unless the recipe says otherwise
    command += ["--eval-steps", "100000"]  # the model compared is that of the last step, whatever the held-out rows say
    command += [] if asked.max_steps is None else ["--max-steps", str(asked.max_steps)]
    command += [filled(asked, word) for word in RECIPES[recipe]]  # the last of a flag counts
    biencoder(command, folder)
    return folder


def filled(asked: Namespace, word: str) -> str:
    """A word of a recipe, with what stands in braces made, if it is a file that is not there yet."""
    if word == "{model}":
        return model_folder(asked)
    if word == "{scored}":
        return str(scored(asked))
    return str(mined(asked, int(word[7:-1]))) if word.startswith("{mined ") else word


def mined(asked: Namespace, count: int) -> Path:
    """The training data with the first ``count`` mined negatives of each row."""
    path: Path = asked.output_dir.resolve() / f"mined-{count}.jsonl"
    if path.exists():
        return path
    if count == MOST_MINED:
        command = ["mine", "--model", model_folder(asked), "--train-data", str(asked.train_data.resolve())]
        command += ["--max-length", str(asked.max_length), "--negatives", str(count), "--output", str(path)]
        biencoder(command, path)
        return path
    with mined(asked, MOST_MINED).open(encoding="utf-8") as rows, path.open("w", encoding="utf-8") as file:
        for row in map(json.loads, rows):
            file.write(json.dumps({"query": row["query"], "pos": row["pos"], "neg": row["neg"][:count]}) + "\n")
    return path


def scored(asked: Namespace) -> Path:
    """The training data with one mined negative, and the scores of the teacher."""
    path: Path = asked.output_dir.resolve() / "scored.jsonl"
    if not path.exists():
        command = ["score", "--model", str(train(asked, TEACHER, asked.seeds[0])), "--output", str(path)]
        command += ["--train-data", str(mined(asked, 1)), "--max-length", str(asked.max_length)]
        biencoder(command, path)
    return path


def biencoder(command: list[str], output: Path, program: tuple[str, ...] = ("biencoder",)) -> None:
    """Run a command, whose output to the terminal goes beside what it makes; ``program`` is a module that has it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{output}.log", "w", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, "-m", *program, *command], cwd=ROOT, check=True, stdout=log, stderr=subprocess.STDOUT
        )


def step_seconds(folder: Path) -> float:
    """Median seconds of an optimizer step."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return float(np.median([record["seconds"] for record in records if "loss" in record]))


def queries_of(asked: Namespace, model: str, kept: Path) -> dict[str, np.ndarray]:
    """The queries of the evaluation folder, by :data:`MEASURE` and the same of vectors cut to :data:`DIMS`."""
    if not kept.exists():
        from biencoder import Encoder
        from biencoder.data.files.beir import load_collection
        from biencoder.retrieval.evaluate import evaluate

        encoder = Encoder.load(model, precision="auto", max_length=asked.max_length)
        found = evaluate(encoder, load_collection(asked.eval_data, None), dims=DIMS).per_query
        kept.parent.mkdir(parents=True, exist_ok=True)
        values = {name: found[name] for name in found if name.startswith(MEASURE)}
        kept.write_text(json.dumps(values), encoding="utf-8")
    return {
        name: np.array([value for _, value in sorted(of_queries.items())])
        for name, of_queries in json.loads(kept.read_text(encoding="utf-8")).items()
    }


def row_of(recipe: str, by_seed: list[np.ndarray], plain: np.ndarray, seconds: list[float]) -> list[str]:
    """Cells of a recipe: mean, lowest and highest seed, the difference to plain training with interval and p, cost."""
    from biencoder.retrieval.comparing.significance import bootstrap_interval, paired_randomization_test

    seeds = [float(values.mean()) for values in by_seed]
    mean = np.mean(by_seed, axis=0)
    low, high = bootstrap_interval(plain, mean)
    difference = float((mean - plain).mean())
    p = float(paired_randomization_test(plain, mean))
    spread = f"{min(seeds):.4f} to {max(seeds):.4f}"
    interval, cost = f"{low:+.4f} to {high:+.4f}", f"{np.median(seconds):.2f}" if seconds else ""
    return [recipe, f"{np.mean(seeds):.4f}", spread, f"{difference:+.4f}", interval, f"{p:.4f}", str(len(seeds)), cost]


def main() -> None:
    """Train, evaluate, print the table."""
    parser = arguments(__doc__ or "", batch_size=64, max_length=128, systems=())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--eval-data", type=Path, required=True, help="BEIR folder")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="names in this file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2], help="one run of each recipe a seed")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the data")
    parser.add_argument("--max-steps", type=int, help="fewer, under a whole schedule")
    parser.add_argument("--learning-rate", type=float, help="default: what `biencoder train` takes")
    asked = parser.parse_args()
    results = {BASE: [queries_of(asked, model_folder(asked), asked.output_dir / "base.queries.json")]}
    seconds: dict[str, list[float]] = {BASE: []}
    for seed in asked.seeds:
        for recipe in dict.fromkeys([PLAIN, *asked.recipes]):
            folder = train(asked, recipe, seed)
            found = queries_of(asked, str(folder), Path(f"{folder}.queries.json"))
            results.setdefault(recipe, []).append(found)
            seconds.setdefault(recipe, []).append(step_seconds(folder))
            print(f"{recipe}, seed {seed}: {MEASURE} {found[MEASURE].mean():.4f}", flush=True)
    rows: list[Any] = []
    for measure in results[PLAIN][0]:
        plain = np.mean([found[measure] for found in results[PLAIN]], axis=0)
        for recipe in results if measure == MEASURE else [each for each in (BASE, PLAIN, NESTED) if each in results]:
            name = recipe + measure.removeprefix(MEASURE)
            rows.append(row_of(name, [found[measure] for found in results[recipe]], plain, seconds[recipe]))
    columns = ["recipe", MEASURE, "lowest to highest seed", "to plain", "95% interval", "p", "seeds", "s a step"]
    steps = f"{asked.max_steps} steps" if asked.max_steps else f"{asked.epochs} epochs"
    report(asked, f"Recipes on {asked.eval_data.name} after {steps}, seeds {asked.seeds}", columns, rows)


if __name__ == "__main__":
    main()
