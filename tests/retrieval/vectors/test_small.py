"""Vectors in fewer bytes: their layouts, and searches in them."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hashing_encoder import HashingEncoder
from sentence_transformers.util import quantize_embeddings

from biencoder.config.choices import BINARY, FLOAT16, FLOAT32, INT8, UBINARY
from biencoder.errors import UserError
from biencoder.retrieval.encode import description, encode_file
from biencoder.retrieval.search_texts import search_texts
from biencoder.retrieval.vectors import small
from biencoder.retrieval.vectors.small import Ranges, restore, shrink, width

SMALL = [FLOAT16, INT8, BINARY, UBINARY]
TEXTS = [f"text {i} about thing {i % 17} and thing {i % 29}" for i in range(400)]


def vectors(rows: int = 300, dim: int = 20) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.mark.parametrize("kind", [INT8, BINARY, UBINARY])
def test_the_layouts_are_those_of_sentence_transformers(kind: str) -> None:
    given = vectors(dim=24)
    ranges = Ranges.of([given[:100], given[100:]]) if kind == INT8 else None
    bounds = None if ranges is None else np.stack([ranges.lowest, ranges.highest])
    theirs = quantize_embeddings(given, precision=kind, ranges=bounds)
    np.testing.assert_array_equal(shrink(given, kind, ranges), theirs)


@pytest.mark.parametrize("dim", [8, 20])
def test_what_is_restored_is_near(dim: int) -> None:
    given = vectors(dim=dim)
    ranges = Ranges.of([given])
    assert np.abs(restore(shrink(given, FLOAT16, None), FLOAT16, None, dim) - given).max() < 2e-3
    error = np.abs(restore(shrink(given, INT8, ranges), INT8, ranges, dim) - given)
    assert (error <= ranges.steps * 0.51).all()
    for kind in (BINARY, UBINARY):
        small = shrink(given, kind, None)
        assert small.shape == (len(given), width(kind, dim))
        np.testing.assert_array_equal(restore(small, kind, None, dim), np.where(given > 0, 1, -1))


def test_a_dimension_in_which_all_are_equal() -> None:
    given = np.full((5, 3), 0.25, np.float32)
    ranges = Ranges.of([given])
    np.testing.assert_allclose(restore(shrink(given, INT8, ranges), INT8, ranges, 3), given)


@pytest.mark.parametrize("kind", SMALL)
def test_a_file_of_small_vectors_is_that_of_whole_ones_shrunk(
    texts: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biencoder.retrieval.search.BLOCK_BYTES", 4096)
    encoder = HashingEncoder()
    encode_file(encoder, texts, tmp_path / "whole.npy")
    made = encode_file(encoder, texts, tmp_path / "small.npy", vectors=kind)
    assert (made.rows, made.dim, made.vectors) == (len(TEXTS), encoder.dim, kind)
    whole, small = np.load(tmp_path / "whole.npy"), np.load(tmp_path / "small.npy")
    np.testing.assert_array_equal(small, shrink(whole, kind, Ranges.of([whole])))
    assert {path.name for path in tmp_path.glob("small*")} == {"small.npy", "small.npy.json"}
    assert (tmp_path / "small.npy").stat().st_size < 0.6 * (tmp_path / "whole.npy").stat().st_size


@pytest.mark.parametrize(
    ("name", "kind", "last_step"),
    [*(("small.npy", kind, "shrink_file") for kind in SMALL), ("small.parquet", FLOAT32, "write_parquet")],
)
def test_it_is_not_made_again_and_a_kill_in_the_last_steps_is_mended(
    texts: Path, tmp_path: Path, name: str, kind: str, last_step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, encoder = tmp_path / name, HashingEncoder()

    def killed(*_: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(f"biencoder.retrieval.encode.{last_step}", killed)
        with pytest.raises(InterruptedError):
            encode_file(encoder, texts, output, vectors=kind)
    assert not output.exists()
    seen = encoder.texts_seen
    assert encode_file(encoder, texts, output, vectors=kind).reused == len(TEXTS)
    first = output.read_bytes()
    (tmp_path / f"{name}.partial").write_bytes(b"left by a kill after the description was written")
    assert encode_file(encoder, texts, output, vectors=kind).reused == len(TEXTS)
    assert (encoder.texts_seen, output.read_bytes()) == (seen, first)
    assert {path.name for path in tmp_path.glob("small*")} == {name, f"{name}.json"}


@pytest.mark.parametrize("kind", SMALL)
def test_a_search_in_small_vectors_has_exact_scores(texts: Path, tmp_path: Path, kind: str) -> None:
    encoder = HashingEncoder()
    encode_file(encoder, texts, tmp_path / "small.npy", vectors=kind)
    queries = TEXTS[3:60:7]
    exact = search_texts(encoder, queries, texts, 5)
    found = search_texts(encoder, queries, texts, 5, embeddings=tmp_path / "small.npy")
    for one, other in zip(exact, found, strict=True):
        scores = {hit.id: hit.score for hit in one}
        assert other[0].id == one[0].id
        assert [hit.score for hit in other] == sorted((hit.score for hit in other), reverse=True)
        same = [hit for hit in other if hit.id in scores]
        assert len(same) >= (5 if kind in (FLOAT16, INT8) else 1)
        for hit in same:
            assert hit.score == pytest.approx(scores[hit.id], abs=1e-6)


def test_fewer_texts_than_are_wanted_have_exact_scores_too(tmp_path: Path) -> None:
    encoder, texts = HashingEncoder(), tmp_path / "few.txt"
    texts.write_text("\n".join(TEXTS[:3]) + "\n")
    encode_file(encoder, texts, tmp_path / "few.npy", vectors=BINARY)
    exact = search_texts(encoder, TEXTS[:1], texts, 5)
    found = search_texts(encoder, TEXTS[:1], texts, 5, embeddings=tmp_path / "few.npy")
    assert [hit.id for hit in found[0]] == [hit.id for hit in exact[0]]
    assert [hit.score for hit in found[0]] == pytest.approx([hit.score for hit in exact[0]])


def test_small_vectors_of_something_else_are_refused(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("biencoder"), "propagate", True)
    output, encoder = tmp_path / "small.npy", HashingEncoder()
    encode_file(encoder, texts, output, vectors=INT8)
    described = description(output)
    assert described is not None

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            search_texts(encoder, ["a"], texts, 2, embeddings=output)

    np.save(output, np.zeros((len(TEXTS), encoder.dim), np.float32))
    refused("must hold a float32 matrix, or be what biencoder encode --vectors wrote")
    np.save(output, np.zeros((len(TEXTS), encoder.dim - 1), np.int8))
    refused("holds vectors of 400 texts")
    (tmp_path / "small.npy.json").unlink()
    np.save(output, np.zeros((len(TEXTS), encoder.dim), np.int8))
    refused("with its .json beside")
    encode_file(encoder, texts, output, vectors=BINARY)
    assert json.loads((tmp_path / "small.npy.json").read_text())["vectors"] == BINARY
    assert encode_file(encoder, texts, output).vectors == FLOAT32
    assert np.load(output).dtype == np.float32


def test_values_that_float16_cannot_hold(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", np.full((2, 4), 1e5, np.float32))
    with pytest.raises(UserError, match=r"--vectors float16: holds no values above 65,504"):
        small.shrink_file(tmp_path / "whole.npy", tmp_path / "small.npy", FLOAT16)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.npy"}
