"""An order in which similar rows are neighbours, and how clusters are cut from it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from biencoder.data import similar_order as module
from biencoder.data.draws import shuffle_draws
from biencoder.data.similar_order import shuffle_clusters, similar_order


def topics(count: int, size: int, noise: float = 0.1) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit vectors around ``count`` random centres, in random order, and the centre of each."""
    draw = np.random.default_rng(0)
    topic = draw.permutation(np.repeat(np.arange(count), size))
    vectors = draw.standard_normal((count, 16))[topic] + noise * draw.standard_normal((count * size, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), topic


def within_runs(vectors: NDArray[np.float32], order: NDArray[np.int64], size: int) -> float:
    """Mean inner product of two different rows of one run of ``size``."""
    runs = order[: len(order) // size * size].reshape(-1, size)
    return float(np.mean([(vectors[run] @ vectors[run].T)[~np.eye(size, dtype=bool)].mean() for run in runs]))


def test_topics_of_equal_size_stay_whole() -> None:
    vectors, topic = topics(count=32, size=16)
    runs = topic[similar_order(vectors, seed=3)].reshape(32, 16)
    assert np.mean([np.bincount(run).max() for run in runs]) > 12  # of 16; at random, about 2


@pytest.mark.parametrize("size", [4, 8, 32, 100])
def test_neighbours_are_similar_at_every_scale(size: int) -> None:
    draw = np.random.default_rng(1)
    vectors = draw.standard_normal((1_000, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert within_runs(vectors, similar_order(vectors, seed=0), size) > 0.4
    assert abs(within_runs(vectors, draw.permutation(1_000), size)) < 0.1


def test_rows_that_do_not_fit_a_block_are_ordered_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = topics(count=32, size=16)
    whole = within_runs(vectors, similar_order(vectors, seed=3), 16)
    monkeypatch.setattr(module, "BLOCK", 50)
    order = similar_order(vectors, seed=3)
    assert sorted(order.tolist()) == list(range(len(vectors)))
    assert within_runs(vectors, order, 16) > 0.8 * whole


def test_the_order_is_a_function_of_vectors_and_seed() -> None:
    vectors, _ = topics(count=8, size=16)
    assert np.array_equal(similar_order(vectors, seed=5), similar_order(vectors, seed=5))
    assert not np.array_equal(similar_order(vectors, seed=5), similar_order(vectors, seed=6))


@pytest.mark.parametrize("rows", [0, 1, 2, 8, 9, 63])
def test_few_rows_and_equal_ones_are_ordered(rows: int) -> None:
    assert sorted(similar_order(np.ones((rows, 4), np.float32), seed=0).tolist()) == list(range(rows))


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 64), (40, 64), (64, 64), (103, 8), (1_000, 7), (1_000, 1)])
def test_clusters_are_runs_of_the_order(rows: int, size: int) -> None:
    order = np.random.default_rng(2).permutation(rows)
    place = np.argsort(order)
    for number in range(3):
        shuffled = shuffle_clusters(order, shuffle_draws(rows, 7, number, 0), size)
        assert sorted(shuffled.tolist()) == list(range(rows))
        whole = max(0, rows // size - 1) * size  # what the first cut may leave incomplete, at the two ends, comes last
        for start in range(0, whole, size):
            assert (np.diff(place[shuffled[start : start + size]]) == 1).all()


def test_each_pass_cuts_other_clusters() -> None:
    order = np.arange(1_000)
    passes = [shuffle_clusters(order, shuffle_draws(1_000, 7, number, 0), 10) for number in range(4)]
    assert len({int(each[0]) % 10 for each in passes}) > 1
    assert len({tuple(each) for each in passes}) == 4
