"""What a corpus of vectors in fewer bytes costs: bytes, and nDCG@10 with and without exact scores for candidates.

python -m benchmarks.vectors --data medquad/dev --output-dir build/vectors
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.workload import print_table
from biencoder import Encoder
from biencoder.config.choices import FLOAT32, VECTORS
from biencoder.data.files.beir import Collection, load_collection
from biencoder.demo.mini_lm import find_model
from biencoder.retrieval.encode import description, encode_file
from biencoder.retrieval.evaluate import DECIDING, score
from biencoder.retrieval.search import candidates, search
from biencoder.retrieval.search_texts import best_by_vectors
from biencoder.retrieval.vectors.small import SmallVectors, shrink_file

SEARCHED = 10  # documents of a query


def stored(whole: Path, kind: str) -> "tuple[Path, np.ndarray | SmallVectors]":
    """The file of a kind of vectors, and the matrix as a search reads it."""
    if kind == FLOAT32:
        return whole, np.load(whole, mmap_mode="r")
    path = whole.with_name(f"{kind}.npy")
    made_from = {"vectors": kind, "dim": np.load(whole, mmap_mode="r").shape[1]} | shrink_file(whole, path, kind)
    return path, SmallVectors(np.load(path, mmap_mode="r"), made_from)


def ndcg(collection: Collection, scores: np.ndarray, indices: np.ndarray) -> float:
    """The mean over all queries of what was found for each."""
    found = {
        query: {collection.corpus_ids[i]: float(value) for i, value in zip(numbers, values, strict=True)}
        for query, numbers, values in zip(collection.query_ids, indices, scores, strict=True)
    }
    return score(found, collection).metrics[DECIDING]


def write_corpus(collection: Collection, folder: Path) -> Path:
    """A file with a line for each document."""
    texts = folder / "corpus.txt"
    texts.write_text("".join(" ".join(text.split()) + "\n" for text in collection.corpus_texts), encoding="utf-8")
    return texts


def main() -> None:
    """Encode once, store in every way, search, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="BEIR folder")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the vectors")
    parser.add_argument("--model", help="model folder (default: the demo's MiniLM)")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    collection = load_collection(asked.data)
    texts = write_corpus(collection, asked.output_dir)
    encoder = Encoder.load(asked.model or find_model(), precision="auto", max_length=asked.max_length)
    encode_file(encoder, texts, asked.output_dir / "whole.npy")
    assert description(asked.output_dir / "whole.npy")
    queries = encoder.encode_queries(collection.query_texts)
    rows = []
    for kind in VECTORS:
        path, matrix = stored(asked.output_dir / "whole.npy", kind)
        scores, named = search(queries, matrix, candidates(SEARCHED))
        again = best_by_vectors(queries, named, np.load(asked.output_dir / "whole.npy"), SEARCHED)
        alone = ndcg(collection, scores[:, :SEARCHED], named[:, :SEARCHED])
        size = f"{path.stat().st_size / 1e6:.2f}"
        rows.append([kind, size, f"{alone:.4f}", f"{ndcg(collection, *again):.4f}"])
    columns = ["--vectors", "MB", "nDCG@10 by these vectors alone", "nDCG@10 of biencoder search"]
    print_table(f"Stored vectors, {collection.description}, at most {asked.max_length} tokens", columns, rows)


if __name__ == "__main__":
    main()
