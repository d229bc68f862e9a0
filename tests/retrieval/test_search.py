import tracemalloc
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from biencoder.retrieval.search import MANY, blocks, extend, nothing, on, resident, search

random = np.random.default_rng(0)


def full_product(queries: np.ndarray, corpus: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def vectors(*shape: int) -> np.ndarray:
    return random.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("queries", [1, 7, MANY])
@pytest.mark.parametrize("k", [1, 10, 150])
@pytest.mark.parametrize("block_rows", [None, 1, 97, 1000, 5000])
def test_equals_the_full_product(queries: int, k: int, block_rows: int | None) -> None:
    q, corpus = (np.round(16 * vectors(rows, 24)) / 16 for rows in (queries, 1000))  # sums of products are exact
    scores, indices = search(q, corpus, k, block_rows)
    expected_scores, expected_indices = full_product(q, corpus, k)
    assert scores.dtype == np.float32
    assert indices.dtype == np.int64
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("k", [1, 10, 150])
@pytest.mark.parametrize("block_rows", [None, 97, 5000])
def test_a_search_among_tensors_is_the_same(k: int, block_rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; with whole numbers, where nearly all scores tie, and a few scores at a time."""
    monkeypatch.setattr("biencoder.retrieval.search.GPU_SCORE_BYTES", 4 * 1000 * 7)
    q, corpus = (random.integers(-1, 2, (rows, 8)).astype(np.float32) for rows in (30, 1000))
    wanted_scores, wanted = search(q, corpus, k, block_rows)
    scores, found = search(q, torch.from_numpy(corpus), k, block_rows)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(scores, wanted_scores)
    assert scores.dtype == np.float32
    assert found.dtype == np.int64


def test_each_block_goes_to_the_device_where_it_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    q, corpus = (random.integers(-1, 2, (rows, 8)).astype(np.float32) for rows in (30, 1000))
    moved = Mock(side_effect=lambda _, block: torch.from_numpy(block))
    monkeypatch.setattr("biencoder.retrieval.search.on", moved)
    gpu = torch.device("cuda")
    scores, found = search(q, corpus, 10, 300, gpu)
    assert [(call.args[0], len(call.args[1])) for call in moved.call_args_list] == [
        (gpu, n) for n in (300, 300, 300, 100)
    ]
    wanted_scores, wanted = search(q, corpus, 10, 300)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(scores, wanted_scores)


def test_a_mapped_file_moves_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    np.save(tmp_path / "m.npy", vectors(5, 4))
    mapped = np.load(tmp_path / "m.npy", mmap_mode="r")
    assert on(torch.device("cpu"), mapped) is mapped
    moved = on(torch.device("meta"), mapped)
    assert moved.shape == (5, 4)
    assert on(torch.device("meta"), moved) is moved
    assert not recwarn.list


def test_vectors_stay_on_a_gpu_where_half_of_its_free_memory_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = np.ones((10, 4), np.float32)
    on = Mock()
    monkeypatch.setattr("biencoder.retrieval.search.on", on)
    for free, count in ((2 * corpus.nbytes - 1, 0), (2 * corpus.nbytes, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**9))
        resident(corpus, torch.device("cuda"))
        assert on.call_count == count
    assert resident(corpus, torch.device("cpu")) is corpus


@pytest.mark.parametrize("block_rows", [None, 1, 64, 333])
@pytest.mark.parametrize("k", [1, 5, 40, 120, 499])
@pytest.mark.parametrize("queries", [3, MANY])  # few are searched in another way than many
def test_ties_come_by_index_in_every_place(block_rows: int | None, k: int, queries: int) -> None:
    # Small whole numbers: every product is exact, and nearly all tie.
    q = random.integers(-1, 2, (queries, 8)).astype(np.float32)
    corpus = random.integers(-1, 2, (500, 8)).astype(np.float32)
    scores, indices = search(q, corpus, k, block_rows)
    expected_scores, expected_indices = full_product(q, corpus, k)
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("queries", [30, MANY])
def test_a_collapsed_model_gives_the_first_documents(queries: int) -> None:
    same = np.ones((300, 4), np.float32)
    scores, indices = search(np.ones((queries, 4), np.float32), same, 10, block_rows=128)
    np.testing.assert_array_equal(indices, np.tile(np.arange(10), (queries, 1)))
    assert (scores == 4).all()


def test_few_queries_over_many_short_vectors_hold_few_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    q, corpus = (np.round(16 * vectors(rows, 24)) / 16 for rows in (50, 1000))
    expected = search(q, corpus, 7)
    monkeypatch.setattr("biencoder.retrieval.search.SCORE_BYTES", 4 * 1000 * 3)
    for part, want in zip(search(q, corpus, 7), expected, strict=True):
        np.testing.assert_array_equal(part, want)


def test_more_results_than_documents_gives_all_documents() -> None:
    q, corpus = vectors(3, 8), vectors(5, 8)
    for block_rows in (None, 2):
        scores, indices = search(q, corpus, 100, block_rows)
        assert scores.shape == indices.shape == (3, 5)
        np.testing.assert_array_equal(indices, full_product(q, corpus, 5)[1])


def test_no_query_and_no_document() -> None:
    assert [part.shape for part in search(vectors(0, 8), vectors(5, 8), 3)] == [(0, 3), (0, 3)]
    assert [part.shape for part in search(vectors(2, 8), vectors(0, 8), 3)] == [(2, 0), (2, 0)]


def test_a_memory_mapped_corpus_is_searched_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "corpus.npy"
    corpus = vectors(50_000, 64)  # 12.8 MB
    np.save(path, corpus)
    q = vectors(20, 64)
    mapped = np.load(path, mmap_mode="r")
    search(q, mapped[:100], 1)  # imports faiss outside the measurement
    tracemalloc.start()
    _, indices = search(q, mapped, 10, block_rows=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    np.testing.assert_array_equal(indices, full_product(q, corpus, 10)[1])


def test_rows_that_are_not_contiguous_and_other_types_are_searched() -> None:
    q, corpus = vectors(4, 8), vectors(100, 16)
    expected = full_product(q, corpus[:, ::2], 5)[1]
    np.testing.assert_array_equal(search(q, corpus[:, ::2], 5)[1], expected)
    np.testing.assert_array_equal(search(q.astype(np.float64), np.asfortranarray(corpus[:, ::2]), 5)[1], expected)


def test_blocks_in_sequence_equal_one_search() -> None:
    q, corpus = vectors(5, 8), vectors(100, 8)
    best = nothing(5)
    for start, stop in blocks(100, 8, 30):
        best = extend(best, q, corpus[start:stop], start, 7)
    np.testing.assert_array_equal(best[1], search(q, corpus, 7)[1])
    assert list(blocks(100, 8, 30)) == [(0, 30), (30, 60), (60, 90), (90, 100)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_queries_that_are_not_finite_are_refused(value: float) -> None:
    q, corpus = vectors(4, 8), vectors(50, 8)
    q[2, 5] = value
    with pytest.raises(ValueError, match=r"query 2 .* not finite"):
        search(q, corpus, 3)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 8\) and corpus \(5, 9\)"):
        search(vectors(4, 8), vectors(5, 9), 3)
    with pytest.raises(ValueError, match="must be matrices"):
        search(vectors(8), vectors(5, 8), 3)
    with pytest.raises(ValueError, match="k is 0"):
        search(vectors(4, 8), vectors(5, 8), 0)
