"""Does a figure among few passages, continued to more (`biencoder.retrieval.continued`), say what more would?

The truth is a collection with all its passages. A sample of them stands for a small one: wrong passages are those of
the sample alone, and the figure is continued to as many as there are. Models are compared with the base, each
collection and model on several samples; a verdict is that of the paired test at 5%.

python -m benchmarks.continued --collections medquad/dev-small build/foreign/* --models build/verdicts/300-* \\
    --output-dir build/continued
"""

import argparse
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.workload import print_table, save

VERDICTS = ("better", "cannot tell", "worse")
WAYS = ("among few", "continued")
Scores = NDArray[np.float32]


class Asked(NamedTuple):
    """A collection as a model sees it: scores ``[Q, N]``, and which passages are relevant to each query."""

    scores: Scores
    relevant: list[list[int]]


class Compared(NamedTuple):
    """A model against the base: the mean change, and what the paired test says of it."""

    change: float
    verdict: str


def asked_of(model: str, folder: Path, max_length: int) -> Asked:
    """All scores of a collection's queries and passages."""
    from biencoder import Encoder
    from biencoder.data.files.beir import load_collection

    collection = load_collection(folder)
    encoder = Encoder.load(model, precision="auto", max_length=max_length)
    places = {document: place for place, document in enumerate(collection.corpus_ids)}
    relevant = [[places[d] for d, grade in collection.qrels[q].items() if grade > 0] for q in collection.query_ids]
    queries, passages = encoder.encode_queries(collection.query_texts), encoder.encode_passages(collection.corpus_texts)
    return Asked(queries @ passages.T, relevant)


def values(asked: Asked, sample: NDArray[np.int64], times: int) -> NDArray[np.float64]:
    """For each query, nDCG@10 of its best answer among a sample of the other passages, ``times`` as many of them."""
    from biencoder.retrieval.continued import TAIL, expected_ndcg

    found = []
    for scores, relevant in zip(asked.scores, asked.relevant, strict=True):
        wrong = np.sort(scores[np.setdiff1d(sample, relevant)])[::-1]
        answer = float(scores[relevant].max())
        above = int((wrong > answer).sum())
        whole = 1 / np.log2(above + 2) if above < 10 else 0.0
        found.append(whole if times == 1 else expected_ndcg(answer, wrong[: TAIL + 1].tolist(), len(wrong), times))
    return np.array(found)


def compared(before: NDArray[np.float64], after: NDArray[np.float64]) -> Compared:
    """Two models on the same queries."""
    from biencoder.retrieval.comparing.comparison import SIGNIFICANT
    from biencoder.retrieval.comparing.significance import paired_randomization_test

    change = float((after - before).mean())
    if paired_randomization_test(before, after) >= SIGNIFICANT:
        return Compared(change, "cannot tell")
    return Compared(change, "better" if change > 0 else "worse")


def measure(base: Asked, tuned: Asked, asked: Namespace) -> dict[str, Any]:
    """A row of the table: the truth, and each way on every sample."""
    passages = base.scores.shape[1]
    everything = np.arange(passages)
    truth = compared(values(base, everything, 1), values(tuned, everything, 1))
    found: dict[str, Any] = {"change": truth.change, "verdict": truth.verdict, **{way: [] for way in WAYS}}
    for seed in range(asked.samples):
        sample = np.random.default_rng(seed).choice(passages, min(asked.passages, passages), replace=False)
        for way, times in zip(WAYS, (1, round(passages / asked.passages)), strict=True):
            found[way].append(compared(values(base, sample, times), values(tuned, sample, times)))
    return found


def rows(asked: Namespace) -> Iterator[dict[str, Any]]:
    """All collections and models."""
    from biencoder.demo.mini_lm import find_model

    for folder in asked.collections:
        base = asked_of(str(asked.model or find_model()), folder, asked.max_length)
        for model in asked.models:
            row = measure(base, asked_of(str(model), folder, asked.max_length), asked)
            print(folder.name, model.name, row, flush=True)
            yield {"collection": folder.name, "model": model.name, **row}


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table of all comparisons."""
    told = [row["collection"], row["model"], f"{row['verdict']}, {row['change']:+.4f}"]
    for way in WAYS:
        verdicts = Counter(each.verdict for each in row[way])
        said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        told.append(f"{said}; {np.mean([each.change for each in row[way]]):+.4f}")
    return told


def tally(found: list[dict[str, Any]]) -> list[list[str]]:
    """For each verdict of the truth: how often each way says what."""
    counted = []
    for truth in VERDICTS:
        chosen = [row for row in found if row["verdict"] == truth]
        for way in WAYS:
            said = Counter(each.verdict for row in chosen for each in row[way])
            counted.append(
                [f"{truth} ({len(chosen)})", way, *(str(said[v]) for v in ("better", "cannot tell", "worse"))]
            )
    return counted


def main() -> None:
    """Measure, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collections", type=Path, nargs="+", required=True, help="BEIR folders")
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="folders of tuned models")
    parser.add_argument("--model", type=Path, help="their base (default: the demo's MiniLM)")
    parser.add_argument("--passages", type=int, default=290, help="of a sample (default: 290)")
    parser.add_argument("--samples", type=int, default=5, help="of each collection (default: 5)")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text (default: 64)")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the figures")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    found = list(rows(asked))
    save(asked, "continued", found)
    columns = ["collection", "model", "among all passages", *(f"{way}, {asked.samples} samples" for way in WAYS)]
    print_table(f"{asked.passages} passages and all of them", columns, [cells(row) for row in found])
    columns = ["verdict among all", "way", *VERDICTS]
    print_table("How often each way says what", columns, tally(found))


if __name__ == "__main__":
    main()
