"""Search by an index against exact search: seconds, how much is found, and bytes, for models of any kind with vectors.

python -m benchmarks.approximate --data medquad/dev --models my-model my-tokens --output-dir build/approximate
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.vectors import SEARCHED, ndcg, write_corpus
from benchmarks.workload import print_table, save
from biencoder import Encoder
from biencoder.config.choices import DENSE
from biencoder.data.files.beir import Collection, load_collection
from biencoder.files import beside
from biencoder.retrieval.approximate.inverted_file import recall
from biencoder.retrieval.approximate.stored_index import open_index
from biencoder.retrieval.encode import description, encode_file
from biencoder.retrieval.search import search
from biencoder.retrieval.vectors.stored import open_vectors

Results = tuple[np.ndarray, np.ndarray]


def rows_of(model: str, collection: Collection, texts: Path, asked: argparse.Namespace) -> list[list[str]]:
    """A row for exact search with a model, and one for its index."""
    encoder = Encoder.load(model, precision="auto", max_length=asked.max_length)
    matrix = asked.output_dir / f"{Path(model).name}.npy"
    encode_file(encoder, texts, matrix)
    made_from = description(matrix)
    assert made_from is not None
    vectors = open_vectors(matrix, like=None if encoder.kind == DENSE else encoder.no_texts)
    queries = encoder.represent_queries(collection.query_texts)
    for old in (".index", ".index.json"):
        beside(matrix, old).unlink(missing_ok=True)
    began = time.perf_counter()
    index = open_index(matrix, vectors, made_from)
    making = time.perf_counter() - began
    ways: dict[str, Callable[[], Results]] = {
        "exact": lambda: search(queries, vectors, SEARCHED),
        f"{index.probes} of {index.inverted_file.lists} lists": lambda: index.search(queries, SEARCHED),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, Results] = {}
    for _ in range(asked.repeats):
        for way, searched in ways.items():
            began = time.perf_counter()
            found[way] = searched()
            seconds[way].append(time.perf_counter() - began)
    wanted = found["exact"][1]
    return [
        [
            f"{Path(model).name}, {way}",
            f"{len(queries) / median(seconds[way]):.0f}",
            f"{recall(numbers, wanted, [-1] * len(wanted)):.4f}",
            f"{ndcg(collection, scores, numbers):.4f}",
            f"{(matrix if way == 'exact' else beside(matrix, '.index')).stat().st_size / 1e6:.1f}",
            "" if way == "exact" else f"{making:.0f}",
        ]
        for way, (scores, numbers) in found.items()
    ]


def main() -> None:
    """Encode, search both ways, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="BEIR folder")
    parser.add_argument("--models", nargs="+", required=True, help="model folders with different names")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the vectors")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--repeats", type=int, default=5, help="searches of each kind, in turn")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    collection = load_collection(asked.data)
    texts = write_corpus(collection, asked.output_dir)
    rows = [row for model in asked.models for row in rows_of(model, collection, texts, asked)]
    columns = ["search", "queries/s (median)", f"recall@{SEARCHED}", f"nDCG@{SEARCHED}", "MB", "s to make the index"]
    save(asked, "approximate", [dict(zip(columns, row, strict=True)) for row in rows])
    print_table(f"Search in {collection.description}, at most {asked.max_length} tokens", columns, rows)


if __name__ == "__main__":
    main()
