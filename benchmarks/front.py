"""What training gains at home and loses abroad: every recipe, averaged with its base in several shares.

Home is a folder to evaluate on that belongs to the training data; abroad are the collections of `benchmarks.foreign`,
which nobody trains on. A point is on the front if no other one is better both at home and abroad. What is done already
in --output-dir is not done again.

python -m benchmarks.foreign --output-dir build/foreign
python -m benchmarks.front --train-data medquad/train.jsonl.gz --home medquad/dev --foreign build/foreign/* \\
    --output-dir build/front

--tuned measures saved models of default runs as they are, such as those of `benchmarks.verdicts`, as one more recipe.

For small data: --train-data part.jsonl --recipes "1 passes at 1e-4" "10 passes at 1e-4", and so on.
"""

import argparse
import json
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.milder import METHODS
from benchmarks.recipes import MEASURE, biencoder
from benchmarks.workload import arguments, model_folder, report

BASE = "the model as it came"
DEFAULTS = "the defaults, as saved"
CHOSEN = -1.0  # the share that a run chose itself
HOME = "home"
SHARES = (0.0, 0.3, 0.5)
RECIPES: dict[str, list[str]] = {
    "rate 5e-5": ["--learning-rate", "5e-5"],
    "rate 1e-4": ["--learning-rate", "1e-4"],
    "rate 2e-4": ["--learning-rate", "2e-4"],
    "rate 4e-4": ["--learning-rate", "4e-4"],
    "random batches": ["--cluster-size", "1", "--learning-rate", "2e-4"],
    "one direction": ["--no-two-way", "--learning-rate", "2e-4"],
    "embeddings frozen": ["--freeze-embeddings", "--learning-rate", "2e-4"],
    "half frozen": ["--freeze-layers", "3", "--learning-rate", "2e-4"],
    "LoRA 16": ["--lora-rank", "16"],
    **{name: ["--learning-rate", "2e-4"] for name in METHODS},
}
PASSES: dict[str, list[str]] = {
    f"{passes} passes at {rate}": ["--epochs", str(passes), "--learning-rate", rate]
    for passes in (1, 3, 4, 6, 10)
    for rate in ("1e-4", "2e-4")
}

Values = dict[str, NDArray[np.float64]]  # collection -> nDCG@10 of its queries


class Point(NamedTuple):
    """A recipe with a share of the base: the values of all queries, averaged over the seeds."""

    recipe: str
    share: float
    values: Values
    by_seed: list[Values]

    def change(self, base: Values, name: str) -> float:
        """Of the mean at home or in a foreign collection."""
        return float((self.values[name] - base[name]).mean())

    def home(self) -> float:
        """Mean at home."""
        return float(self.values[HOME].mean())

    def losses(self, base: Values) -> list[float]:
        """The change in each foreign collection."""
        return [self.change(base, name) for name in base if name != HOME]


def train(asked: Namespace, recipe: str, seed: int) -> Path:
    """The folder of the trained model, unmixed."""
    folder: Path = asked.output_dir.resolve() / f"{recipe.replace(' ', '-')}-{seed}"
    if not (folder / "eval.json").exists():
        command = ["train", "--model", model_folder(asked), "--train-data", str(asked.train_data.resolve())]
        command += ["--output-dir", str(folder), "--seed", str(seed), "--batch-size", str(asked.batch_size)]
        command += ["--query-max-len", str(asked.max_length), "--passage-max-len", str(asked.max_length)]
        command += ["--eval-data", str(asked.foreign[0].resolve()), "--save-steps", "100000", "--eval-steps", "100000"]
        command += ["--keep-base", "0", "--no-general-guard", "--no-cross-validate"]
        command += [] if asked.max_steps is None else ["--max-steps", str(asked.max_steps)]
        program = ("benchmarks.milder", recipe) if recipe in METHODS else ("biencoder",)
        biencoder([*command, *(RECIPES | PASSES)[recipe]], folder, program)
    return folder


def measured(asked: Namespace, model: str, share: float, kept: Path) -> Values:
    """The queries at home and abroad, by a model that is averaged with its base."""
    if not kept.exists():
        from biencoder import Encoder
        from biencoder.data.files.beir import load_collection
        from biencoder.model.merging.merge import mix_in
        from biencoder.retrieval.evaluate import evaluate

        encoder = Encoder.load(model, precision="auto", max_length=asked.max_length)
        mix_in(encoder, model_folder(asked), {}, share)
        folders = {HOME: asked.home, **{folder.name: folder for folder in asked.foreign}}
        found = {
            name: evaluate(encoder, load_collection(folder)).per_query[MEASURE] for name, folder in folders.items()
        }
        kept.write_text(json.dumps(found), encoding="utf-8")
    found = json.loads(kept.read_text(encoding="utf-8"))
    return {name: np.array([value for _, value in sorted(queries.items())]) for name, queries in found.items()}


def point(recipe: str, share: float, by_seed: list[Values]) -> Point:
    """The mean of each query over the seeds."""
    return Point(
        recipe, share, {name: np.mean([found[name] for found in by_seed], axis=0) for name in by_seed[0]}, by_seed
    )


def on_front(points: list[Point], base: Values) -> set[int]:
    """Numbers of the points that no other point beats at home and abroad."""
    places = [(each.home(), float(np.mean(each.losses(base)))) for each in points]
    return {
        number
        for number, (home, abroad) in enumerate(places)
        if not any(other != (home, abroad) and other[0] >= home and other[1] >= abroad for other in places)
    }


def row_of(each: Point, base: Values, front: bool) -> list[str]:
    """Cells: home with interval, mean change abroad with interval, and the change in each foreign collection."""
    from biencoder.retrieval.comparing.significance import bootstrap_interval

    abroad = [name for name in base if name != HOME]
    low, high = bootstrap_interval(base[HOME], each.values[HOME])
    changes = np.concatenate([each.values[name] - base[name] for name in abroad])
    lost_low, lost_high = bootstrap_interval(np.zeros_like(changes), changes)
    seeds = [float(found[HOME].mean()) for found in each.by_seed]
    return [
        each.recipe,
        "chosen" if each.share == CHOSEN else f"{each.share:g}",
        f"{each.home():.4f}",
        f"{min(seeds):.4f} to {max(seeds):.4f}",
        f"{low:+.4f} to {high:+.4f}",
        f"{np.mean(each.losses(base)):+.4f}",
        f"{lost_low:+.4f} to {lost_high:+.4f}",
        *(f"{loss:+.4f}" for loss in each.losses(base)),
        "yes" if front else "",
    ]


def main() -> None:
    """Train, average, evaluate, print the front."""
    parser = arguments(__doc__ or "", batch_size=64, max_length=64, systems=())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--home", type=Path, required=True, help="BEIR folder that belongs to the training data")
    parser.add_argument("--foreign", type=Path, nargs="+", required=True, help="BEIR folders that do not")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="names in this file")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="shares of the base")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2], help="one run of each recipe a seed")
    parser.add_argument("--tuned", type=Path, nargs="+", default=[], help="saved models of default runs")
    parser.add_argument("--max-steps", type=int, help="default: one epoch")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    base = measured(asked, model_folder(asked), 0.0, asked.output_dir / "base.json")
    found: dict[tuple[str, float], list[Values]] = {}
    for seed in asked.seeds:
        for recipe in asked.recipes:
            folder = train(asked, recipe, seed)
            for share in asked.shares:
                values = measured(asked, str(folder), share, Path(f"{folder}.{share:g}.json"))
                found.setdefault((recipe, share), []).append(values)
                print(recipe, seed, share, {name: round(float(v.mean()), 4) for name, v in values.items()}, flush=True)
    for folder in asked.tuned:
        values = measured(asked, str(folder), 0.0, asked.output_dir / f"{folder.resolve().name}.as-saved.json")
        found.setdefault((DEFAULTS, CHOSEN), []).append(values)
        print(DEFAULTS, folder, {name: round(float(v.mean()), 4) for name, v in values.items()}, flush=True)
    points = [point(recipe, share, by_seed) for (recipe, share), by_seed in found.items()]
    front = on_front(points, base)
    rows: list[Any] = [row_of(point(BASE, 0.0, [base]), base, False)]
    rows += [row_of(each, base, number in front) for number, each in enumerate(points)]
    columns = ["recipe", "base kept", "home", "seeds", "gain at home", "abroad", "95% interval"]
    columns += [*(name for name in base if name != HOME), "on the front"]
    steps = f"{asked.max_steps} steps" if asked.max_steps else "one epoch"
    report(
        asked, f"Gain at home ({asked.home.name}) and change abroad after {steps}, seeds {asked.seeds}", columns, rows
    )


if __name__ == "__main__":
    main()
