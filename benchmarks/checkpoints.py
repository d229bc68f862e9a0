"""What checkpoints cost: seconds to write and to verify one, against the seconds of the steps between two.

python -m benchmarks.checkpoints --train-data medquad/train.jsonl.gz --output-dir build/checkpoints
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from benchmarks.workload import print_table, sample
from biencoder.config import TrainConfig
from biencoder.demo.mini_lm import find_model
from biencoder.training.progress import TrainingProgress
from biencoder.training.run import train
from biencoder.training.setup import Setup
from biencoder.training.state.checkpoint import newest_checkpoint
from biencoder.training.steps import loop, snapshot

COLUMNS = ["what", "seconds"]


def main() -> None:
    """Train a few steps of `biencoder train` as it comes, with a checkpoint after each; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-data", type=Path, required=True, help="JSON lines with query and pos, .gz too")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the run, on the disk to measure")
    parser.add_argument("--model", help="model folder (default: the demo's MiniLM)")
    parser.add_argument("--steps", type=int, default=3, help="with a checkpoint after each; the first one is left out")
    parser.add_argument("--save-steps", type=int, default=100, help="between two checkpoints")
    asked = parser.parse_args()
    shutil.rmtree(asked.output_dir, ignore_errors=True)
    saves: list[float] = []
    save = snapshot.save

    def timed_save(setup: Setup, progress: TrainingProgress) -> None:
        began = time.perf_counter()
        save(setup, progress)
        saves.append(time.perf_counter() - began)

    vars(loop)["save"] = timed_save
    with sample(asked.train_data, 64 * asked.steps + 64) as rows:
        train(
            TrainConfig(
                model=asked.model or str(find_model()),
                train_data=(rows,),
                output_dir=asked.output_dir,
                save_steps=1,
                max_steps=asked.steps,
                general_guard=False,
                cross_validate=False,
            )
        )
    records = map(json.loads, (asked.output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [record["seconds"] for record in records if "loss" in record]
    began = time.perf_counter()
    newest = newest_checkpoint(asked.output_dir / "checkpoints")
    verified = time.perf_counter() - began
    assert newest is not None
    size = sum(path.stat().st_size for path in newest.iterdir())
    write = sum(saves[1:]) / len(saves[1:])
    step = sum(steps[1:]) / len(steps[1:])
    print_table(
        f"A checkpoint of {size / 1e6:.0f} MB at --save-steps {asked.save_steps}, batch 64",
        COLUMNS,
        [
            ["writing a checkpoint, its manifest and syncs included", f"{write:.2f}"],
            [f"{asked.save_steps} steps", f"{asked.save_steps * step:.1f}"],
            ["share of writing", f"{write / (write + asked.save_steps * step):.2%}"],
            ["verifying it when a run goes on", f"{verified:.2f}"],
        ],
    )


if __name__ == "__main__":
    main()
