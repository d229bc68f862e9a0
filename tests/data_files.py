"""Small data files for tests."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from biencoder.data.table import ExampleTable


def write(path: Path, content: bytes | str) -> Path:
    """Write bytes; gzip-compressed where the name says so."""
    raw = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    return write(path, b"".join(orjson.dumps(row) + b"\n" for row in rows))


def row(query: str, *positives: str, neg: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    return {"query": query, "pos": list(positives), "neg": list(neg), **more}


def table_of(folder: Path, rows: Sequence[Any]) -> ExampleTable:
    return ExampleTable.from_files([write_jsonl(folder / "train.jsonl", rows)])


def write_collection(folder: Path, corpus: Sequence[Any], queries: Sequence[Any], **qrels: str) -> Path:
    """A BEIR folder; each keyword is a split and its judgements."""
    write_jsonl(folder / "corpus.jsonl", corpus)
    write_jsonl(folder / "queries.jsonl", queries)
    for split, judgements in qrels.items():
        write(folder / "qrels" / f"{split}.tsv", judgements)
    return folder
