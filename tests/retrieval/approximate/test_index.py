"""An index names candidates, whose scores are exact, and it says how much it finds."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from biencoder.files import beside
from biencoder.model.representations.ragged import Ragged, TokenVectors, Vectors
from biencoder.retrieval.approximate import inverted_file, tuned_index
from biencoder.retrieval.approximate.inverted_file import InvertedFile, build, recall
from biencoder.retrieval.approximate.stored_index import open_index
from biencoder.retrieval.approximate.tuned_index import LEAST_RECALL, STEPS, tuned
from biencoder.retrieval.search import search

K = 10


def near(centres: NDArray[np.float32], rows: int, draw: np.random.Generator) -> NDArray[np.float32]:
    """Vectors of length 1 around some of the centres."""
    vectors = centres[draw.integers(len(centres), size=rows)]
    vectors = vectors + 0.6 * draw.standard_normal(vectors.shape).astype(np.float32) / vectors.shape[1] ** 0.5
    found: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def ragged(vectors: NDArray[np.float32], longest: int, draw: np.random.Generator) -> TokenVectors:
    lengths = draw.integers(1, longest + 1, size=len(vectors))
    starts = np.concatenate([[0], lengths.cumsum()])
    starts = starts[starts <= len(vectors)]
    return TokenVectors(vectors[: starts[-1]], starts)


@pytest.fixture(params=["dense", "dense half", "multi", "half", "many"])
def texts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Vectors, Vectors]:
    """Queries and passages; "many" are as many as have lists by parts."""
    if request.param == "many":
        monkeypatch.setattr(inverted_file, "MANY", 4096)
    draw = np.random.default_rng(1)
    centres = draw.standard_normal((60, 24)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    passages, queries = near(centres, 9000, draw), near(centres, 200, draw)
    if request.param in ("dense", "many"):
        return queries[:40], passages
    if request.param == "dense half":
        return queries[:40], passages.astype(np.float16)
    stored = ragged(passages, 12, draw)
    if request.param == "half":
        stored = TokenVectors(stored.vectors.astype(np.float16), stored.starts)
    return ragged(queries, 5, draw), stored


def test_finds_nearly_all_with_exact_scores(tmp_path: Path, texts: tuple[Vectors, Vectors]) -> None:
    queries, passages = texts
    index = open_index(tmp_path / "x.npy", passages, {"texts": "1"})
    assert index.recall >= LEAST_RECALL
    assert index.probes < index.inverted_file.lists
    scores, found = index.search(queries, K)
    wanted_scores, wanted = search(queries, passages, K)
    assert recall(found, wanted, [-1] * len(queries)) > 0.9
    assert (np.diff(scores, axis=1) <= 0).all()
    for row in range(len(queries)):
        same = np.isin(wanted[row], found[row])
        exact = dict(zip(wanted[row].tolist(), wanted_scores[row].tolist(), strict=True))
        mine = dict(zip(found[row].tolist(), scores[row].tolist(), strict=True))
        assert all(mine[text] == pytest.approx(exact[text], abs=1e-6) for text in wanted[row][same].tolist())
        assert len(set(found[row].tolist())) == K


def test_looks_at_hardly_more_lists_than_it_needs(
    texts: tuple[Vectors, Vectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, passages = texts
    monkeypatch.setattr(tuned_index, "ENOUGH", 0)
    index = tuned(build(passages), queries, [-1] * len(queries), K)
    wanted = search(queries, passages, K)[1]
    fewer = index.probes - 1 - index.probes // STEPS
    assert 0 < fewer < index.inverted_file.lists
    assert index.recall >= LEAST_RECALL
    assert recall(index.inverted_file.search(queries, K, fewer)[1], wanted, [-1] * len(queries)) < LEAST_RECALL


def test_all_lists_find_everything(texts: tuple[Vectors, Vectors], monkeypatch: pytest.MonkeyPatch) -> None:
    queries, passages = texts
    monkeypatch.setattr("biencoder.retrieval.search.LEAST_CANDIDATES", len(passages))
    monkeypatch.setattr(inverted_file, "FOUND", 10**6)
    file = build(passages)
    scores, found = file.search(queries, K, file.lists)
    wanted_scores, wanted = search(queries, passages, K)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-6)


def test_beyond_a_number_of_vectors_there_are_more_lists_and_not_longer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(3)
    passages = near(draw.standard_normal((60, 24)).astype(np.float32), 16_000, draw)
    monkeypatch.setattr(inverted_file, "MANY", 4000)
    short, long = (build(passages[:rows]) for rows in (4001, 16_000))
    assert long.lists / short.lists == pytest.approx(4, rel=0.2)
    built = [build(passages[:rows]).index for rows in (4000, 4001)]
    is_graph = [isinstance(faiss.downcast_index(index.quantizer), faiss.IndexHNSW) for index in built]
    assert is_graph == [False, True]


def test_a_query_that_finds_too_little_looks_everywhere() -> None:
    draw = np.random.default_rng(2)
    few = near(np.eye(8, dtype=np.float32), 90, draw)
    file = build(few)
    assert file.lists > 1
    for passages, asked in ((few, few[:3]), (few[:3], few[:1])):
        file = build(passages)
        _, found = file.search(asked, 80, 1)
        assert [sorted(row) for row in found.tolist()] == [sorted(r) for r in search(asked, passages, 80)[1].tolist()]


def test_candidates_are_ranked_by_their_best_matches() -> None:
    nearness = np.array([[0.9, 0.8, 0.5], [0.7, 0.6, 0.6]], np.float32)
    texts = np.array([[4, 4, 2], [2, 7, -1]])
    named, gains = inverted_file._gains(nearness, texts, texts >= 0)
    assert named.tolist() == [2, 4, 7]
    np.testing.assert_allclose(gains, [0.0 + 0.1, 0.4, 0.0], atol=1e-6)


def test_an_index_is_made_once_and_again_for_another_matrix(
    tmp_path: Path, texts: tuple[Vectors, Vectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, passages = texts
    path, made = tmp_path / "x.npy", []
    real: Any = build

    def counted(vectors: Vectors) -> InvertedFile:
        made.append(len(vectors))
        return real(vectors)  # type: ignore[no-any-return]

    monkeypatch.setattr("biencoder.retrieval.approximate.stored_index.build", counted)
    first = open_index(path, passages, {"texts": "1"})
    again = open_index(path, passages, {"texts": "1"})
    assert (again.probes, again.recall, len(made)) == (first.probes, first.recall, 1)
    np.testing.assert_array_equal(again.search(queries, K)[1], first.search(queries, K)[1])
    half = passages[: len(passages) // 2]
    other = open_index(path, half, {"texts": "2"})
    assert made == [len(passages), len(half)]
    assert other.search(queries, K)[1].max() < len(half)
    whole = beside(path, ".index").read_bytes()
    beside(path, ".index").write_bytes(whole[: len(whole) // 3])
    mended = open_index(path, half, {"texts": "2"})
    assert len(made) == 3
    assert isinstance(half, Ragged) == isinstance(passages, Ragged)
    np.testing.assert_array_equal(mended.search(queries, K)[1], other.search(queries, K)[1])
    assert {file.name for file in tmp_path.iterdir()} == {"x.npy.index", "x.npy.index.json"}
