"""Ids, texts and vectors in one file."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hashing_encoder import HashingEncoder

from biencoder.config.choices import FLOAT32, INT8, UBINARY
from biencoder.errors import UserError
from biencoder.retrieval.encode import description, encode_file
from biencoder.retrieval.search_texts import search_texts
from biencoder.retrieval.vectors import parquet

ROWS = [{"_id": f"d{i}", "title": f"title {i}", "text": f"text of {i % 7} — ü"} for i in range(50)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", [FLOAT32, INT8, UBINARY])
def test_every_row_has_its_id_its_text_and_the_vector_of_the_matrix(
    texts: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROWS", 8)
    encoder = HashingEncoder()
    encode_file(encoder, texts, tmp_path / "out.npy", vectors=kind)
    made = encode_file(encoder, texts, tmp_path / "out.parquet", vectors=kind)
    table = pq.read_table(made.output)
    assert table.column_names == ["id", "text", "vector"]
    assert table["id"].to_pylist() == [row["_id"] for row in ROWS]
    assert table["text"].to_pylist() == [f"{row['title']} {row['text']}" for row in ROWS]
    matrix = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), matrix.dtype), matrix)
    assert pq.ParquetFile(made.output).num_row_groups == 7
    described = description(made.output)
    assert described is not None
    assert ("ranges" in described) is (kind == INT8)


def test_a_search_does_not_read_it_as_a_matrix(texts: Path, tmp_path: Path) -> None:
    encode_file(HashingEncoder(), texts, tmp_path / "out.parquet")
    with pytest.raises(UserError, match=r"out\.parquet: cannot be read as a \.npy file"):
        search_texts(HashingEncoder(), ["a"], texts, 2, embeddings=tmp_path / "out.parquet")
