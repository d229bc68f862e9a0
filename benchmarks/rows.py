"""How cost grows with the rows of the data: seconds, exponents that fit them, and memory for each row.

An exponent of 1 is linear: twice the rows take twice the time. Beyond the number of rows from which on a command looks
at near rows only, the exponent counts sizes beyond it alone. Texts and vectors are made up and small, so that what is
measured is the work for each row.

python -m benchmarks.rows --output-dir build/rows
"""

import argparse
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.scaling import fit
from benchmarks.status import memory
from benchmarks.workload import last_line, print_table, save

if TYPE_CHECKING:
    from biencoder.config import TrainConfig
    from biencoder.data.table import ExampleTable
    from biencoder.model.representations.ragged import AnyVectors

DIM, HIDDEN_DIM = 32, 8  # of a vector, and of the space that it is a picture of, as texts lie in fewer dimensions too
WORDS = 8  # of a query
NOISE = 0.02  # of the place of a query around its passage's, whose numbers are 0 to 1
WATCHED = 0.02  # seconds between two looks at the memory
STEPS = 3
FAR = 100_000_000  # rows, to which what was measured is continued


@dataclass
class Watch:
    """What a piece of work took.

    Attributes:
        seconds: wall time.
        memory: bytes of the process's own memory at its peak, without what it had before; mapped files do not count.
    """

    seconds: float = 0.0
    memory: int = 0


@contextmanager
def watched() -> Iterator[Watch]:
    """Time and memory of the block."""
    found, over = Watch(), threading.Event()
    before = memory("RssAnon")

    def look() -> None:
        while not over.wait(WATCHED):
            found.memory = max(found.memory, memory("RssAnon") - before)

    thread = threading.Thread(target=look)
    thread.start()
    began = time.perf_counter()
    try:
        yield found
    finally:
        found.seconds = time.perf_counter() - began
        over.set()
        thread.join()


class MadeUpEncoder:
    """A text's last word is a number, whose vector is a picture of a place in fewer dimensions; queries lie near it."""

    fingerprint, kind = "made up", "dense"
    words: Sequence[str] = ()
    device = torch.device("cpu")

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.dim = self.text_size = DIM
        self.no_texts = np.empty((0, DIM), np.float32)
        self._waves = draw.standard_normal((HIDDEN_DIM, DIM)).astype(np.float32) * 2
        self._phases = draw.uniform(0, 2 * np.pi, DIM).astype(np.float32)

    def represent_passages(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None, prompt: str | None = None
    ) -> np.ndarray:
        assert prompt is None, "no row here has a prompt of its own"
        return self._vectors(self._places(texts), progress)

    def represent_queries(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None, prompt: str | None = None
    ) -> np.ndarray:
        assert prompt is None, "no row here has a prompt of its own"
        places = self._places(texts)
        return self._vectors(places + NOISE * np.random.default_rng(1).random(places.shape, np.float32), progress)

    def cut(self, vectors: "AnyVectors", dim: int) -> "AnyVectors":
        raise NotImplementedError("nothing here cuts vectors")

    def _places(self, texts: Sequence[str]) -> np.ndarray:
        from biencoder.data.random_bits import bits_of

        numbers = np.array([int(text.rpartition(" ")[2]) for text in texts], np.uint64)
        axes = [(bits_of(axis, numbers) >> np.uint64(40)).astype(np.float32) for axis in range(HIDDEN_DIM)]
        places: np.ndarray = np.stack(axes, axis=1) / np.float32(1 << 24)
        return places

    def _vectors(self, places: np.ndarray, progress: Callable[[int], None] | None) -> np.ndarray:
        vectors: np.ndarray = np.cos(places @ self._waves + self._phases)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if progress is not None:
            progress(len(places))
        return vectors


def write_rows(path: Path, rows: int) -> None:
    """Pairs of different queries and passages."""
    with path.open("w") as file:
        for i in range(rows):
            about = " ".join(f"w{(i * 7919 + j * 104729) % 50_000}" for j in range(WORDS))
            file.write(json.dumps({"query": f"what is {about} {i}", "pos": [f"{about} {about} is {i}"]}) + "\n")


def read_table(folder: Path, rows: int) -> "ExampleTable":
    """A table of made-up pairs."""
    from biencoder.data.table import ExampleTable

    write_rows(folder / "pairs.jsonl", rows)
    return ExampleTable.from_files([folder / "pairs.jsonl"])


def run_config(folder: Path, **more: Any) -> "TrainConfig":
    """A run on the pairs in a folder, without anything that is not asked for."""
    from biencoder.config import TrainConfig

    off: dict[str, Any] = {"general_guard": False, "cross_validate": False, "cluster_size": 1, "device": "cpu"}
    return TrainConfig(
        model=str(folder / "model"), train_data=(folder / "pairs.jsonl",), output_dir=folder / "out", **off | more
    )


def table(folder: Path, rows: int) -> Watch:
    """Read the training data."""
    from biencoder.data.table import ExampleTable

    write_rows(folder / "pairs.jsonl", rows)
    with watched() as found:
        ExampleTable.from_files([folder / "pairs.jsonl"])
    return found


def batches(folder: Path, rows: int) -> Watch:
    """Audit the data, hold out queries, and plan the first batch."""
    from biencoder.data.audit import audit
    from biencoder.data.evaluation.held_out import hold_out
    from biencoder.data.plan.sampling import KnownPositives, Sampler

    examples = read_table(folder, rows)
    with watched() as found:
        audit(examples)
        train = hold_out(examples, seed=42, queries=300, passages=6000).train
        Sampler(train, batch_size=64, group_size=8, seed=42).plan(0)
        KnownPositives(train)
        assert len(train.fingerprint) == 32
    return found


def clusters(folder: Path, rows: int) -> Watch:
    """Encode the queries by a function and make clusters of them."""
    from biencoder.training.sources.clusters import similar_rows

    examples = read_table(folder, rows)
    config = run_config(folder, cluster_size=16)
    with watched() as found:
        similar_rows(MadeUpEncoder(), examples, config)
    return found


def mining(folder: Path, rows: int) -> Watch:
    """Encode queries and as many passages by a function and mine hard negatives."""
    from biencoder.config import MiningOptions
    from biencoder.retrieval.mining.mine import mine

    examples = read_table(folder, rows)
    with watched() as found:
        mined = mine(MadeUpEncoder(), examples, MiningOptions(max_share=10.0))
    assert mined.counts.min() == MiningOptions().negatives
    return found


def encoding(folder: Path, rows: int) -> Watch:
    """Encode texts by a tiny model."""
    from biencoder import Encoder
    from biencoder.retrieval.encode import encode_file

    write_rows(folder / "pairs.jsonl", rows)
    texts = folder / "texts.txt"
    with (folder / "pairs.jsonl").open() as pairs, texts.open("w") as file:
        file.writelines(json.loads(line)["query"] + "\n" for line in pairs)
    encoder = Encoder.load(tiny_model(folder / "model"))
    with watched() as found:
        encode_file(encoder, texts, folder / "vectors.npy")
    return found


def checkpoints(folder: Path, rows: int) -> Watch:
    """Write a checkpoint of a run on so many rows."""
    from biencoder.training.run import train
    from biencoder.training.steps import loop, snapshot

    write_rows(folder / "pairs.jsonl", rows)
    tiny_model(folder / "model")
    saves: list[Watch] = []
    write = snapshot.save

    def timed(*words: Any) -> None:
        with watched() as found:
            write(*words)
        saves.append(found)

    vars(loop)["save"] = timed
    train(run_config(folder, save_steps=1, max_steps=STEPS, eval_steps=STEPS))
    return Watch(median(save.seconds for save in saves), max(save.memory for save in saves))


def tiny_model(folder: Path) -> Path:
    """A model of two narrow layers with random weights."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from biencoder.demo.mini_lm import find_model
    from biencoder.model.files.saving import save_model
    from biencoder.model.files.settings import ModelSettings

    torch.manual_seed(0)
    config = BertConfig(hidden_size=DIM, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * DIM)
    settings = ModelSettings(pooling="mean", normalize=True, max_length=64, similarity="cosine")
    save_model(folder, BertModel(config), AutoTokenizer.from_pretrained(find_model()), settings)
    return folder


@dataclass(frozen=True)
class Cost:
    """Something whose cost may grow with rows.

    Attributes:
        name: for people.
        work: what is measured, in a folder of its own.
        sizes: rows.
        switch: rows up to which the work is of another kind.
    """

    name: str
    work: Callable[[Path, int], Watch]
    sizes: Sequence[int]
    switch: int = 0
    found: dict[int, list[dict[str, float]]] = field(default_factory=dict)

    def row(self) -> list[str]:
        """Name, seconds, switch, exponent, bytes for each further row, and what `FAR` rows would take of both."""
        seconds = {rows: median(each["seconds"] for each in runs) for rows, runs in self.found.items()}
        peaks = {rows: max(each["memory"] for each in runs) for rows, runs in self.found.items()}
        beyond = {rows: each for rows, each in seconds.items() if rows > self.switch}
        (less, before), (most, after) = [(0, 0.0), *peaks.items()][-2:]
        a_row = max(0.0, after - before) / (most - less)
        exponent = fit(list(beyond), list(beyond.values())) if len(beyond) > 1 else math.nan
        hours = seconds[most] * (FAR / most) ** exponent / 3600
        return [
            self.name,
            ", ".join(f"{rows:,}: {each:.3g}" for rows, each in seconds.items()),
            f"{self.switch:,}" if self.switch else "",
            *("" if math.isnan(exponent) else shown for shown in (f"{exponent:.2f}", f"{hours:.2g}")),
            f"{a_row:.0f}",
            f"{(after + a_row * (FAR - most)) / 1e9:.2g}",
        ]


def costs() -> dict[str, Cost]:
    """All of them; the sizes are what each needs, so that all end within an hour or two on two cores."""
    from biencoder.config import MiningOptions
    from biencoder.data.evaluation.held_out_corpus import MOST_READ
    from biencoder.training.sources.clusters import EXACT_UP_TO

    found = [
        Cost("reading the training data", table, (10_000, 100_000, 1_000_000, 10_000_000)),
        Cost("audit, held-out queries, the first batch", batches, (10_000, 300_000, 1_000_000, 10_000_000), MOST_READ),
        Cost("clusters", clusters, (10_000, 100_000, 300_000, 1_000_000), EXACT_UP_TO),
        Cost("mining", mining, (10_000, 300_000, 600_000, 1_200_000), MiningOptions().exact_up_to),
        Cost("encoding by a tiny model", encoding, (10_000, 100_000, 1_000_000)),
        Cost("a checkpoint of a tiny model", checkpoints, (10_000, 100_000, 1_000_000)),
    ]
    return {cost.work.__name__: cost for cost in found}


def once(name: str, rows: int) -> dict[str, float]:
    """What some work took in a process of its own."""
    found: dict[str, float] = json.loads(last_line("benchmarks.rows", "--once", name, str(rows)))
    return found


def main() -> None:
    """Measure, print the table."""
    known = costs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the results")
    parser.add_argument("--costs", nargs="+", choices=known, default=list(known), help="what to measure (default: all)")
    parser.add_argument("--sizes", type=int, nargs="+", help="rows (default: what each cost needs)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each size (default: 1)")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    for name in asked.costs:
        for rows in sorted(asked.sizes or known[name].sizes):
            known[name].found[rows] = [once(name, rows) for _ in range(asked.repeats)]
            print(f"{name}, {rows:,} rows: {known[name].found[rows]}", flush=True)
            save(asked, "rows", [{"cost": each, "runs": known[each].found} for each in asked.costs])
    columns = ["work", "seconds, by rows", "other kind up to", "exponent", f"hours for {FAR:,}, continued"]
    columns += ["bytes of memory for each further row", f"GB for {FAR:,}, continued"]
    print_table("Growth with the rows of the data", columns, [known[name].row() for name in asked.costs])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        with tempfile.TemporaryDirectory() as temporary:
            print(json.dumps(vars(costs()[sys.argv[2]].work(Path(temporary), int(sys.argv[3])))))
    else:
        main()
