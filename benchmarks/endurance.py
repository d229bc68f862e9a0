"""File handles, threads and resident memory over a long run, evaluations and checkpoints going on.

python -m benchmarks.endurance --output-dir build/endurance
"""

import argparse
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.workload import print_table, save
from biencoder.config import TrainConfig
from biencoder.demo.mini_lm import find_model
from biencoder.device.allocator import tune_allocator
from biencoder.training.run import train

MARKS = (200, 1000, 2000)  # steps after which it is looked
WORDS = 6000


@dataclass(frozen=True)
class Seen:
    """What a process holds after a step."""

    step: int
    handles: int
    threads: int
    resident_bytes: int
    seconds: float


def write_pairs(path: Path, rows: int) -> None:
    """Random words, some of them shared by a query and its passage."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(WORDS)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            query = draw.choices(words, k=draw.randint(3, 10))
            passage = query[:2] + draw.choices(words, k=draw.randint(5, 60))
            file.write(json.dumps({"query": " ".join(query), "pos": [" ".join(passage)]}) + "\n")


def look(step: int, began: float) -> Seen:
    """This process as Linux shows it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    handles = sum(1 for _ in Path("/proc/self/fd").iterdir())
    resident = int(status["VmRSS"].split()[0]) * 1024
    return Seen(step, handles, int(status["Threads"]), resident, time.perf_counter() - began)


def watched(config: TrainConfig, marks: list[int]) -> list[Seen]:
    """Train; what was seen after each step that is a mark."""
    found: list[Seen] = []
    steps, began = iter(range(1, 10**9)), time.perf_counter()

    def see(*_: object) -> None:
        if (step := next(steps)) in marks:
            found.append(look(step, began))

    hook = register_optimizer_step_post_hook(see)
    train(config)
    hook.remove()
    return found


def main() -> None:
    """Train, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="where the data, the model and the figures go")
    parser.add_argument("--model", help="folder of the model (default: all-MiniLM-L6-v2 of the demo extra)")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs a step")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of queries and of passages")
    parser.add_argument("--rows", type=int, default=4000, help="of training data")
    parser.add_argument("--eval-steps", type=int, default=250)
    parser.add_argument("--save-steps", type=int, default=100)
    parser.add_argument("--marks", type=int, nargs="+", default=list(MARKS), help="steps after which to look")
    asked = parser.parse_args()
    data, tuned = asked.output_dir / "pairs.jsonl", asked.output_dir / "tuned"
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(tuned, ignore_errors=True)
    write_pairs(data, asked.rows)
    tune_allocator()
    config = TrainConfig(
        model=asked.model or str(find_model()),
        train_data=(data,),
        output_dir=tuned,
        batch_size=asked.batch_size,
        group_size=1,
        query_max_len=asked.max_length,
        passage_max_len=asked.max_length,
        max_steps=max(asked.marks),
        eval_steps=asked.eval_steps,
        save_steps=asked.save_steps,
        general_guard=False,
        cross_validate=False,
    )
    found = watched(config, asked.marks)
    first = found[0].resident_bytes
    rows = [
        [f"{seen.step:,}", str(seen.handles), str(seen.threads), f"{seen.resident_bytes / 1e6:.1f}",
         f"{seen.resident_bytes / first - 1:+.2%}", f"{seen.seconds:.0f}"]
        for seen in found
    ]  # fmt: skip
    save(asked, "endurance", [asdict(seen) for seen in found])
    setting = f"A long run: {Path(config.model).name}, batch {asked.batch_size}, {asked.max_length} tokens"
    setting += f", an evaluation every {asked.eval_steps} steps, a checkpoint every {asked.save_steps}"
    against = f"against step {found[0].step:,}"
    columns = ["step", "file handles", "threads", "resident memory, MB", against, "seconds"]
    print_table(setting, columns, rows)


if __name__ == "__main__":
    main()
