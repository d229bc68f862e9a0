"""Loss and gradient of one large batch of vectors: its time against that of its matrix products alone, and its memory.

python -m benchmarks.loss --output-dir build/loss

The vectors are random. Each setting runs in a process of its own. Memory is the peak of that process beyond what it had
with the vectors in memory; the gradient is part of it. The difference is from the loss and gradient of all scores at
once, for the first --check queries and their passages.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.status import forget_peak, memory
from benchmarks.workload import last_line, print_table, save
from biencoder.device.allocator import tune_allocator
from biencoder.model.representations.dense import Dense
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.objective.labels import BatchLabels
from biencoder.objective.marks import Marks
from biencoder.training.batch import TrainingBatch
from biencoder.training.gradcache import LEAST_QUERIES, _cache_gradient

SHARE = 8  # of the matrix products, one part in so many is timed


@dataclass(frozen=True)
class Setting:
    """What the loss is made of.

    Attributes:
        objective: of the batch.
        masked: every hundredth query has a false negative that is known.
        taught: a teacher scored each query's two passages.
    """

    objective: ContrastiveObjective
    masked: bool = False
    taught: bool = False

    @property
    def group(self) -> int:
        """Passages of each query."""
        return 2 if self.taught else 1

    def batch(self, queries: int) -> TrainingBatch:
        """A batch of so many queries, without its texts."""
        columns = torch.arange(queries * self.group).view(queries, self.group)
        rows = torch.arange(0, queries, 100).numpy()
        known = Marks.of(rows, columns[:, 0].numpy()[rows - 1], (queries, columns.numel())) if self.masked else None
        teacher = torch.randn(queries, 2, generator=torch.Generator().manual_seed(1)) if self.taught else None
        labels = BatchLabels(columns, torch.arange(queries), known, teacher)
        return TrainingBatch([], queries, [queries], [columns.numel()], queries, labels)

    def products(self, dim: int) -> float:
        """How often the product of all queries and passages is taken, forward and backward, in all dimensions."""
        return 3 * (1 + self.objective.two_way) * sum(self.objective.dims or (dim,)) / dim


PLAIN = ContrastiveObjective(0.05)
SETTINGS = {
    "one way": Setting(PLAIN),
    "one way, masked": Setting(PLAIN, masked=True),
    "both ways": Setting(replace(PLAIN, two_way=True)),
    "with a teacher": Setting(PLAIN, taught=True),
    "384 and 128 dimensions": Setting(replace(PLAIN, dims=(384, 128))),
}


def vectors(texts: int, dim: int) -> Dense:
    """Random unit vectors."""
    drawn = torch.randn(texts, dim, generator=torch.Generator().manual_seed(0))
    return Dense(torch.nn.functional.normalize(drawn, dim=1))


def in_blocks(setting: Setting, texts: Dense, batch: TrainingBatch) -> tuple[float, Dense]:
    """The loss and its gradient as training computes them."""
    gradient, losses = _cache_gradient(texts, batch, setting.objective, None, None)
    assert isinstance(gradient, Dense)
    return float(losses.total), gradient


def at_once(setting: Setting, texts: Dense, batch: TrainingBatch) -> tuple[float, Dense]:
    """The same from all scores at once."""
    leaves = texts.as_leaves()
    labels = batch.labels.rows(slice(None))
    loss = setting.objective(leaves[: batch.queries], leaves[batch.queries :], labels).total.mean()
    loss.backward()
    return float(loss.detach()), leaves.gradient()


def difference(setting: Setting, dim: int, queries: int) -> float:
    """The largest relative difference of loss and gradient between the two."""
    texts, batch = vectors(queries * (1 + setting.group), dim), setting.batch(queries)
    (loss, gradient), (wanted, plain) = (way(setting, texts, batch) for way in (in_blocks, at_once))
    norm = plain.vectors.norm()
    return max(abs(loss - wanted) / wanted, float((gradient.vectors - plain.vectors).norm() / norm))


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def multiply(queries: Tensor, passages: Tensor) -> None:
    """A part of the products of forward and backward pass, in blocks of the same size."""
    for part in queries[: len(queries) // SHARE].split(LEAST_QUERIES):
        scores = part @ passages.T
        _ = scores.T @ part
        _ = scores @ passages


def measure(setting: Setting, asked: argparse.Namespace) -> dict[str, float]:
    """A row of the table."""
    found = {"difference": difference(setting, asked.dim, asked.check)}
    queries = asked.batch // setting.group
    batch, texts = setting.batch(queries), vectors(queries * (1 + setting.group), asked.dim)
    multiply(texts.vectors[:LEAST_QUERIES], texts.vectors[queries:])
    forget_peak()
    before = memory("VmRSS")
    taken, products = [], []
    for _ in range(asked.repeats):
        taken.append(timed(lambda: in_blocks(setting, texts, batch)))
        products.append(SHARE * timed(lambda: multiply(texts.vectors[:queries], texts.vectors[queries:])))
    found["bytes"] = memory("VmHWM") - before
    found["seconds"], found["products"] = median(taken), median(products) * setting.products(asked.dim) / 3
    return found


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, help="folder for the figures")
    parser.add_argument("--batch", type=int, default=65_536, help="passages of the batch (default: 65536)")
    parser.add_argument("--check", type=int, default=2048, help="queries of the comparison (default: 2048)")
    parser.add_argument("--dim", type=int, default=384, help="of a vector (default: 384)")
    parser.add_argument("--repeats", type=int, default=1, help="of each (default: 1)")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS, help="names")
    parser.add_argument("--measure", choices=SETTINGS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        tune_allocator()  # as every command does
        print(json.dumps(measure(SETTINGS[asked.measure], asked)))
        return
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    sizes = [f"--{name}={getattr(asked, name)}" for name in ("batch", "check", "dim", "repeats")]
    found = {name: json.loads(last_line("benchmarks.loss", "--measure", name, *sizes)) for name in asked.settings}
    save(asked, "loss", [{"setting": name, **figures} for name, figures in found.items()])
    rows = [
        [
            name,
            f"{each['seconds']:.1f}",
            f"{each['products']:.1f}",
            f"{each['seconds'] / each['products']:.2f}",
            f"{each['bytes'] / 1e9:.2f}",
            f"{each['difference']:.1e}",
        ]
        for name, each in found.items()
    ]
    columns = ["loss", "s", "s of its products", "times its products", "GB beyond the vectors", "relative difference"]
    print_table(f"Loss and gradient of {asked.batch:,} passages of {asked.dim} dimensions", columns, rows)


if __name__ == "__main__":
    main()
