"""Mining: its time over that of encoding the same texts, and its memory and time over those of the matrix alone.

python -m benchmarks.mine --train-data medquad/train.jsonl.gz --output-dir build/mine
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.workload import last_line, model_folder, print_table, save

if TYPE_CHECKING:
    from biencoder.model.representations.ragged import AnyVectors

PART = 16_384  # vectors drawn from one seed
NOISE = 0.05  # of each value of a query's vector; a passage's are 1 / sqrt(dim) large


class RandomEncoder:
    """The vector of the passage ``i`` is random; that of the query ``i`` lies near it. Notes when queries begin."""

    fingerprint = "random"
    kind = "dense"
    words: Sequence[str] = ()
    device = torch.device("cpu")

    def __init__(self, dim: int) -> None:
        self.dim = self.text_size = dim
        self.no_texts = np.empty((0, dim), np.float32)
        self.queries_began = 0.0

    def represent_passages(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None, prompt: str | None = None
    ) -> np.ndarray:
        assert prompt is None
        numbers = [int(text) for text in texts]
        vectors = np.concatenate([self._part(part, np.array(places)) for part, places in _by_part(numbers)])
        if progress is not None:
            progress(len(texts))
        return vectors

    def represent_queries(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None, prompt: str | None = None
    ) -> np.ndarray:
        assert prompt is None, "no row of this benchmark has a prompt of its own"
        self.queries_began = self.queries_began or time.perf_counter()
        vectors = self.represent_passages([text.removeprefix("query ") for text in texts], progress)
        vectors += np.float32(NOISE) * np.random.default_rng(1 << 32).standard_normal(vectors.shape, np.float32)
        return _unit_length(vectors)

    def cut(self, vectors: "AnyVectors", dim: int) -> "AnyVectors":
        raise NotImplementedError("mining cuts no vectors")

    def _part(self, part: int, rows: np.ndarray) -> np.ndarray:
        return _unit_length(
            np.random.default_rng(part).standard_normal((int(rows.max()) + 1, self.dim), np.float32)[rows]
        )


def _unit_length(vectors: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def _by_part(numbers: list[int]) -> Iterator[tuple[int, list[int]]]:
    """Neighbours of the same part, with their places in it."""
    places: list[int] = []
    for i, number in enumerate(numbers):
        places.append(number % PART)
        if i + 1 == len(numbers) or numbers[i + 1] // PART != number // PART:
            yield number // PART, places
            places = []


def random_once(passages: int, queries: int, dim: int) -> dict[str, float]:
    """Mine among random vectors; the clock runs from the queries on, so that it sees neither texts nor drawing."""
    from biencoder.config import MiningOptions
    from biencoder.data.table import ExampleTable
    from biencoder.retrieval.mining.mine import mine

    encoder = RandomEncoder(dim)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps({"query": f"query {i}", "pos": str(i)}) + "\n" for i in range(queries))
        file.flush()
        table = ExampleTable.from_files([Path(file.name)])
    mined = mine(encoder, table, MiningOptions(), map(str, range(passages)))
    seconds = time.perf_counter() - encoder.queries_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert mined.counts.min() == MiningOptions().negatives
    return {"seconds": seconds, "over": (peak - 4 * passages * dim) / 1e9}


def product_once(passages: int, queries: int, dim: int) -> dict[str, float]:
    """The same inner products with nothing done to them, a block at a time into one piece of memory."""
    random = np.random.default_rng(0)
    vectors, block = (random.standard_normal((rows, dim), np.float32) for rows in (queries, min(passages, PART)))
    scores = np.empty((queries, len(block)), np.float32)
    np.matmul(vectors, block.T, out=scores)
    began = time.perf_counter()
    for start in range(0, passages, len(block)):
        stop = min(passages - start, len(block))
        np.matmul(vectors, block[:stop].T, out=scores[:, :stop] if stop == len(block) else None)
    return {"seconds": time.perf_counter() - began}


def encode_once(model: str, train_data: str, max_length: int) -> dict[str, float]:
    """Each different text encoded: what mining cannot do without."""
    from biencoder import Encoder
    from biencoder.data.table import ExampleTable

    encoder = Encoder.load(model, precision="auto", max_length=max_length)
    table = ExampleTable.from_files([Path(train_data)])
    examples = [table[i] for i in range(len(table))]
    queries = list(dict.fromkeys(example.query for example in examples))
    passages = list(dict.fromkeys(text for e in examples for text in (*e.positives, *e.negatives)))
    began = time.perf_counter()
    encoder.encode_passages(passages)
    encoder.encode_queries(queries)
    return {"seconds": time.perf_counter() - began, "queries": len(queries), "passages": len(passages)}


def mine_once(model: str, train_data: str, max_length: int) -> dict[str, float]:
    """All of mining but the loading of model and data, which `encode_once` does not count either."""
    from biencoder import Encoder
    from biencoder.config import MiningOptions
    from biencoder.data.table import ExampleTable
    from biencoder.retrieval.mining.mine import mine

    encoder = Encoder.load(model, precision="auto", max_length=max_length)
    table = ExampleTable.from_files([Path(train_data)])
    began = time.perf_counter()
    mined = mine(encoder, table, MiningOptions())
    rows = [mined.negatives(i, table[i]) for i in range(len(table))]
    return {"seconds": time.perf_counter() - began, "negatives": sum(map(len, rows))}


ONCE: dict[str, Callable[..., dict[str, float]]] = {
    "encode": encode_once,
    "mine": mine_once,
    "product": product_once,
    "random": random_once,
}


def once(name: str, *words: str | int) -> dict[str, float]:
    """A measurement in a process of its own."""
    found: dict[str, float] = json.loads(last_line("benchmarks.mine", "--once", name, json.dumps(words)))
    return found


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--train-data", type=Path, required=True, help="JSON lines with query and pos, .gz too")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the results")
    parser.add_argument("--model", help="model folder (default: the demo's MiniLM)")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a text")
    parser.add_argument("--passages", type=int, default=1_000_000, help="random vectors to mine among")
    parser.add_argument("--queries", type=int, default=10_000, help="random queries, at most as many as passages")
    parser.add_argument("--dim", type=int, default=384, help="of a random vector")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    real = (model_folder(asked), str(asked.train_data.resolve()), asked.max_length)
    made_up = (asked.passages, asked.queries, asked.dim)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ONCE}
    for repeat in range(asked.repeats):
        for name in ONCE:
            runs[name].append(once(name, *(real if name in ("encode", "mine") else made_up)))
            print(f"{repeat + 1}/{asked.repeats} {name}: {runs[name][-1]}", flush=True)
    save(asked, "mine", [{"run": name, **found} for name, each in runs.items() for found in each])
    seconds = {name: median(found["seconds"] for found in each) for name, each in runs.items()}
    texts = runs["encode"][0]
    size = 4 * asked.passages * asked.dim / 1e9
    over = max(found["over"] for found in runs["random"])
    rows = [
        [
            f"{texts['queries']:,} queries over {texts['passages']:,} passages",
            "encoding them",
            f"{seconds['encode']:.1f}",
            f"{seconds['mine']:.1f}",
            f"{seconds['mine'] / seconds['encode']:.3f}",
            "",
        ],
        [
            f"{asked.queries:,} queries over {asked.passages:,} random vectors of {asked.dim}",
            "the matrix product",
            f"{seconds['product']:.1f}",
            f"{seconds['random']:.1f}",
            f"{seconds['random'] / seconds['product']:.3f}",
            f"{size:.2f} GB + {over:.2f} GB",
        ],
    ]
    columns = ["what", "compared to", "seconds", "mining, seconds", "times", "peak memory: matrix + the rest"]
    print_table(f"Mining, medians of {asked.repeats} runs", columns, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        print(json.dumps(ONCE[sys.argv[2]](*json.loads(sys.argv[3]))))
    else:
        main()
