"""Every command with words that work, what they read, and what it means that one is refused."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from tiny import WORDS, tiny_cross_encoder, tiny_model

from biencoder.cli import main
from biencoder.config import TrainConfig
from biencoder.training.run import train

ROWS = [{"query": f"{WORDS[i]} {WORDS[i + 100]}", "pos": [f"{WORDS[i]} word5"], "neg": []} for i in range(40)]
GOOD: dict[str, list[str]] = {
    "train": [
        "--no-general-guard",
        "--no-cross-validate",
        "--model",
        "model",
        "--train-data",
        "pairs.jsonl",
        "--output-dir",
        "out",
    ],
    "evaluate": ["--model", "model", "--data", "beir", "--output", "figures.json", "--run-file", "ranking.trec"],
    "diff": ["model", "other", "--data", "beir", "--output", "changes.jsonl"],
    "report": ["run", "--output", "report.html"],
    "encode": ["--model", "model", "--input", "texts.txt", "--output", "vectors.npy"],
    "search": ["--model", "model", "--corpus", "texts.txt", "--query", "word1", "--output", "hits.jsonl"],
    "serve": ["--model", "model", "--port", "0"],
    "mine": ["--model", "model", "--train-data", "pairs.jsonl", "--output", "mined.jsonl"],
    "score": ["--reranker", "reranker", "--train-data", "pairs.jsonl", "--output", "scored.jsonl"],
    "check": ["--train-data", "pairs.jsonl", "--model", "model", "--eval-data", "beir"],
    "pairs": ["--documents", "manual", "--output", "made.jsonl"],
    "export": ["--model", "model", "--output-dir", "exported"],
    "distill": ["--model", "model", "--output-dir", "static", "--dim", "8"],
    "merge": ["model", "other", "--output-dir", "merged"],
    "demo": ["--output-dir", "tried"],
    "doctor": [],
}


def value_of(command: str, flag: str) -> str:
    return GOOD[command][GOOD[command].index(flag) + 1]


def with_flag(command: str, flag: str, value: str) -> list[str]:
    """The good command with one flag added, or its value changed."""
    words = list(GOOD[command])
    if flag in words:
        words[words.index(flag) + 1] = value
        return [command, *words]
    return [command, *words, flag, value]


def write_rows(path: Path, rows: Iterable[object]) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def fill(folder: Path) -> Path:
    """Write a model, training data, an evaluation folder and texts, with which every command of :data:`GOOD` works."""
    tiny_model(folder / "model")
    tiny_model(folder / "other")
    tiny_cross_encoder(folder / "reranker")
    write_rows(folder / "pairs.jsonl", ROWS)
    (folder / "texts.txt").write_text("word1 word2\nword3\n")
    (folder / "manual").mkdir()
    (folder / "manual" / "page.md").write_text("# Router\n\nIt has one button. " + "Press the button for a while. " * 9)
    (folder / "beir" / "qrels").mkdir(parents=True)
    write_rows(folder / "beir" / "corpus.jsonl", [{"_id": f"d{i}", "text": WORDS[i]} for i in range(20)])
    write_rows(folder / "beir" / "queries.jsonl", [{"_id": f"q{i}", "text": WORDS[i]} for i in range(5)])
    write_rows(
        folder / "beir" / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(5))]
    )
    train(
        TrainConfig(
            model=str(folder / "model"),
            train_data=(folder / "pairs.jsonl",),
            eval_data=folder / "beir",
            output_dir=folder / "run",
            max_steps=2,
            batch_size=8,
            device="cpu",
            general_guard=False,
            cross_validate=False,
        )
    )
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


LONGEST_MESSAGE = 2000
Refused = Callable[..., None]


def check_refused(
    folder: Path, words: list[str], parts: Iterable[str], capsys: pytest.CaptureFixture[str], *, lines: int = 1
) -> None:
    """Code 2, one line with ``parts`` in it on standard error, and nothing written anywhere below ``folder``.

    Before it may stand ``lines - 1`` of progress and of the log.
    """
    before = contents(folder)
    capsys.readouterr()
    code = main(words)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    last = err.splitlines()[-1]
    assert last.startswith("biencoder: error: ")
    assert err.count("\n") == lines, err
    assert len(err) < LONGEST_MESSAGE
    assert [part for part in parts if part not in last] == [], err
    assert contents(folder) == before
