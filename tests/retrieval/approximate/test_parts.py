"""Parts of vectors by nearness, however many vectors there are."""

import numpy as np
import pytest
from numpy.typing import NDArray

from biencoder.retrieval.approximate import parts as module
from biencoder.retrieval.approximate.parts import centres, near_parts, recall_within

Vectors = NDArray[np.float32]


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    """6,000 vectors of length 1 around 60 points."""
    draw = np.random.default_rng(0)
    found = draw.standard_normal((60, 16))[draw.integers(60, size=6000)] + 0.2 * draw.standard_normal((6000, 16))
    unit: Vectors = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.mark.parametrize("branches", [256, 4])  # all parts at once, and parts of parts
def test_each_vector_is_in_one_part_with_those_near_it(
    branches: int, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BRANCHES", branches)
    parts = near_parts(vectors, 500)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(vectors)))
    assert max(map(len, parts)) <= 500
    assert all((np.diff(part) > 0).all() for part in parts)
    at_random = np.array_split(np.random.default_rng(1).permutation(len(vectors)), len(parts))
    assert recall_within(vectors, parts) > 0.8
    assert recall_within(vectors, at_random) < 0.2
    for one, other in zip(parts, near_parts(vectors, 500), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_recall_is_the_share_of_neighbours_in_the_same_part(vectors: Vectors) -> None:
    few = vectors[:300]  # fewer than the sample plus its neighbours would be drawn from
    halves = [np.arange(150), np.arange(150, 300)]
    sample = np.unique(np.linspace(0, 299, module.SOUGHT).astype(np.int64))
    shares = []
    for number in sample:
        nearest = np.argsort(-(few @ few[number]), kind="stable")[:11]
        shares.append(np.mean([(n < 150) == (number < 150) for n in nearest if n != number][:10]))
    assert recall_within(few, halves) == pytest.approx(np.mean(shares), abs=1e-3)
    assert recall_within(few, [np.arange(300)]) == 1.0


@pytest.mark.parametrize("rows", [1, 7, 100, 1000])
def test_vectors_that_nothing_tells_apart_are_cut_into_parts_all_the_same(rows: int) -> None:
    parts = near_parts(np.ones((rows, 4), np.float32), 30)
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    assert max(map(len, parts)) <= 30


def test_centres_are_about_as_many_as_asked_and_near_the_vectors(
    vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BRANCHES", 16)
    found = centres(vectors, np.arange(len(vectors)), 100)
    assert 80 <= len(found) <= 120
    nearest = ((vectors[:200, None] - found[None]) ** 2).sum(axis=2).min(axis=1)
    assert nearest.mean() < 0.15  # two of the vectors are 2 apart on average
