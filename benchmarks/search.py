"""Exact top-k over a memory-mapped matrix, against faiss's flat index in memory, in turn and again.

python -m benchmarks.search --output-dir build/search
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import faiss
import numpy as np

from benchmarks.workload import print_table, save
from biencoder.retrieval.search import search

Results = tuple[np.ndarray, np.ndarray]


def write_corpus(path: Path, documents: int, dim: int, seed: int = 0) -> None:
    """Random unit vectors, a part at a time."""
    random = np.random.default_rng(seed)
    corpus = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(documents, dim))
    for start in range(0, documents, 100_000):
        part = random.standard_normal((min(100_000, documents - start), dim), dtype=np.float32)
        corpus[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    corpus.flush()


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the corpus")
    parser.add_argument("--documents", type=int, default=500_000, help="vectors in the corpus")
    parser.add_argument("--dim", type=int, default=384, help="of a vector")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64, 512], help="at a time")
    parser.add_argument("--k", type=int, default=10, help="results a query")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    write_corpus(asked.output_dir / "corpus.npy", asked.documents, asked.dim)
    mapped = np.load(asked.output_dir / "corpus.npy", mmap_mode="r")
    index = faiss.IndexFlatIP(asked.dim)
    index.add(np.asarray(mapped))
    systems: dict[str, Callable[[np.ndarray], Results]] = {
        "biencoder, memory-mapped": lambda queries: search(queries, mapped, asked.k),
        "faiss flat, in memory": lambda queries: index.search(queries, asked.k),
    }
    rows, results = [], []
    for count in asked.queries:
        queries = np.random.default_rng(count).standard_normal((count, asked.dim), dtype=np.float32)
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        for _ in range(asked.repeats):
            found = []
            for name, system in systems.items():
                began = time.perf_counter()
                found.append(system(queries)[1])
                seconds[name].append(time.perf_counter() - began)
        same = f"{(found[0] == found[1]).mean():.4f}"
        fastest = median(seconds["faiss flat, in memory"])
        results += [{"system": name, "queries": count, "seconds": times} for name, times in seconds.items()]
        rows += [
            [name, str(count), f"{count / median(times):.1f}", f"{fastest / median(times):.2f}", same]
            for name, times in seconds.items()
        ]
    save(asked, "search", results)
    columns = ["system", "queries at a time", "queries/s (median)", "times faiss", "same documents in the same places"]
    title = f"Top {asked.k} of {asked.documents:,} vectors of {asked.dim} dimensions, {asked.repeats} runs"
    print_table(title, columns, rows)


if __name__ == "__main__":
    main()
