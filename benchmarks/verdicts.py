"""Does the verdict of a default run hold? Runs on parts of the training data, each judged again by a folder.

Rows drawn from everywhere are about as many things; --neighbours draws rows that stand together in the file, as a
person's own few rows would.

A default run holds out a part of its rows and says better, worse or cannot tell, if need be after cross-validation. The
judge is a folder that belongs to the same data: it compares the base with the saved model on all its queries and
documents. The last columns compare the figure of the report with the figure of the same queries over all passages.

python -m benchmarks.verdicts --train-data medquad/train.jsonl.gz --judge medquad/dev --output-dir build/verdicts
"""

import argparse
import functools
import json
import random
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.recipes import MEASURE, biencoder
from benchmarks.workload import arguments, model_folder, report

if TYPE_CHECKING:
    from biencoder.retrieval.evaluate import Evaluation

TELLING = 0.05  # a true gain above this must not end in "cannot tell"


def part(asked: Namespace, size: int, seed: int) -> Path:
    """So many rows of the training data, drawn by the seed: from everywhere, or neighbours."""
    from biencoder.data.files.lines import read_lines

    path: Path = asked.output_dir.resolve() / f"{size}-{seed}.jsonl"
    if not path.exists():
        rows = [line.strip() + b"\n" for _, line in read_lines(asked.train_data)]
        draw = random.Random(seed)
        if asked.neighbours:
            first = draw.randint(0, max(0, len(rows) - size))
            chosen = rows[first : first + size]
        else:
            chosen = draw.sample(rows, min(size, len(rows)))
        path.write_bytes(b"".join(chosen))
    return path


def train(asked: Namespace, rows: Path, seed: int) -> Path:
    """A run as it comes, apart from the lengths."""
    folder = rows.with_suffix("")
    if not (folder / "eval.json").exists():
        command = ["train", "--model", model_folder(asked), "--train-data", str(rows), "--output-dir", str(folder)]
        command += ["--query-max-len", str(asked.max_length), "--passage-max-len", str(asked.max_length)]
        biencoder([*command, "--seed", str(seed), "--resume", "auto"], folder)
    return folder


def verdict_of(row: dict[str, float]) -> str:
    """A comparison of :data:`MEASURE` in one word."""
    from biencoder.retrieval.comparing.comparison import SIGNIFICANT

    if row["p"] >= SIGNIFICANT:
        return "cannot tell"
    return "better" if row["difference"] > 0 else "worse"


@functools.cache
def of_base(model: str, judge: Path, max_length: int) -> "Evaluation":
    """The base on the judge, which is the same for all runs."""
    from biencoder import Encoder
    from biencoder.data.files.beir import load_collection
    from biencoder.retrieval.evaluate import evaluate

    return evaluate(Encoder.load(model, precision="auto", max_length=max_length), load_collection(judge))


def judged(asked: Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """What the run said, what the judge says, and the same queries over all passages."""
    from biencoder import Encoder
    from biencoder.config import DataSet
    from biencoder.data.data_sets import read_data_sets
    from biencoder.data.evaluation.held_out import hold_out
    from biencoder.data.files.beir import load_collection
    from biencoder.retrieval.comparing.comparison import compare, comparison_json
    from biencoder.retrieval.evaluate import evaluate

    kept = folder / "judged.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    told = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    tuned = Encoder.load(folder, precision="auto", max_length=asked.max_length)
    before = of_base(model_folder(asked), asked.judge, asked.max_length)
    comparison = comparison_json(compare(before, evaluate(tuned, load_collection(asked.judge))))
    table = read_data_sets([DataSet(path=(folder.with_suffix(".jsonl"),))], "stop")
    everything = hold_out(table, seed=seed, queries=told["after"]["queries"], passages=len(table) ** 2).collection
    first = _by_measure(told["comparison"])
    look = told.get("cross_validation")
    said = next(row for row in look["comparison"] if row["measure"] == look["deciding"]) if look else first
    truth = _by_measure(comparison)
    documents = len(everything.corpus_ids)
    whole = told["after"]["documents"] == documents
    found = {
        "said": said,
        "first": first,
        "truth": truth,
        "documents": told["after"]["documents"],
        "all_documents": documents,
        "over_all": first["after"] if whole else evaluate(tuned, everything).metrics[MEASURE],
        "keep_base": told["keep_base"],
    }
    kept.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return found


def _by_measure(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["measure"] == MEASURE)


def agrees(found: dict[str, Any]) -> bool:
    """Whether the run said what the judge says; "cannot tell" is right up to a gain of :data:`TELLING`."""
    said, truth = verdict_of(found["said"]), verdict_of(found["truth"])
    return said == truth or (said == "cannot tell" and abs(found["truth"]["difference"]) <= TELLING)


def row_of(size: int, seed: int, found: dict[str, Any]) -> list[str]:
    """Cells of one run."""
    said, first, truth = found["said"], found["first"], found["truth"]
    return [
        f"{size:,}",
        str(seed),
        f"{said['queries']:,}" + (" by cross-validation" if said != first else ""),
        f"{said['before']:.4f} to {said['after']:.4f}",
        f"{verdict_of(said)} (p = {said['p']:.4f})",
        f"{truth['before']:.4f} to {truth['after']:.4f}",
        f"{verdict_of(truth)}, {truth['difference']:+.4f}",
        "yes" if agrees(found) else "NO",
        f"{found['documents']:,} of {found['all_documents']:,}",
        f"{first['after'] - found['over_all']:+.4f}",
        f"{found['keep_base']:g}",
    ]


def main() -> None:
    """Run, judge, print the table."""
    parser = arguments(__doc__ or "", batch_size=64, max_length=256, systems=())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--judge", type=Path, required=True, help="BEIR folder that belongs to the training data")
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 1000, 3200, 13211], help="rows of each part")
    parser.add_argument("--neighbours", action="store_true", help="rows that stand together, not rows from everywhere")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="one part of each size a seed")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for size in asked.sizes:
        for seed in asked.seeds:
            found = judged(asked, train(asked, part(asked, size, seed), seed), seed)
            rows.append(row_of(size, seed, found))
            print(" | ".join(rows[-1]), flush=True)
    columns = ["rows", "seed", "queries", "the run says", "verdict", "the judge says", "verdict", "agrees"]
    columns += ["passages", "figure above that over all passages", "base kept"]
    agreed = sum(row[7] == "yes" for row in rows)
    report(asked, f"Verdicts of default runs: {agreed} of {len(rows)} agree with {asked.judge.name}", columns, rows)


if __name__ == "__main__":
    main()
