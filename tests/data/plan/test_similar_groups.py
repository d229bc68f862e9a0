"""Groups of a row and its nearest neighbours, and batches of them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from biencoder.data.plan.similar_groups import shuffle_clusters, similar_groups
from biencoder.data.random_bits import shuffle_bits

Vectors = NDArray[np.float32]
Indices = NDArray[np.int64]


def topics(count: int, size: int) -> tuple[Vectors, Indices]:
    """Unit vectors around ``count`` random centres, in random order, and the centre of each."""
    draw = np.random.default_rng(0)
    topic = draw.permutation(np.repeat(np.arange(count), size))
    vectors = draw.standard_normal((count, 16))[topic] + 0.1 * draw.standard_normal((count * size, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), topic


def one_each(vectors: Vectors, size: int, seed: int = 0) -> Indices:
    return similar_groups(vectors, np.ones(len(vectors), np.int64), size, seed)


def test_topics_of_the_size_stay_whole() -> None:
    vectors, topic = topics(count=32, size=16)
    groups = topic[one_each(vectors, 16)].reshape(32, 16)
    assert all(len(set(group.tolist())) == 1 for group in groups)


def test_questions_about_one_thing_are_together_although_their_wording_differs_more() -> None:
    """The wording is the largest direction of all vectors, and the nearest neighbours are of one thing all the same."""
    draw = np.random.default_rng(0)
    things, wordings = draw.standard_normal((200, 64)), 0.5 * draw.standard_normal((4, 64))
    thing, wording = np.repeat(np.arange(200), 4), np.tile(np.arange(4), 200)
    vectors = things[thing] + wordings[wording]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    groups = thing[one_each(vectors, 4)].reshape(-1, 4)
    assert np.mean([len(set(group.tolist())) == 1 for group in groups]) > 0.9


def test_each_group_is_the_first_row_drawn_and_its_nearest_that_are_free() -> None:
    draw = np.random.default_rng(1)
    vectors = draw.standard_normal((60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    free = set(range(60))
    for group in one_each(vectors, 7, seed=4)[:56].reshape(8, 7):
        similarity = vectors[group] @ vectors[group].T
        rest = vectors[sorted(free - set(group.tolist()))]
        nearer = [min(similarity[i]) >= max(rest @ vectors[group[i]]) for i in range(7)]
        assert any(nearer)  # for the one that was drawn
        free -= set(group.tolist())


def test_no_vector_is_twice_in_a_group_and_each_row_is_in_one() -> None:
    vectors, _ = topics(count=5, size=10)
    copies = np.random.default_rng(2).integers(1, 5, len(vectors))
    order = similar_groups(vectors, copies, 8, seed=0)
    assert np.array_equal(np.bincount(order, minlength=len(vectors)), copies)
    groups = [order[start : start + 8] for start in range(0, len(order), 8)]
    assert [len(set(group.tolist())) == 8 for group in groups[:10]] == [True] * 10


def test_parts_have_groups_of_their_own() -> None:
    vectors, topic = topics(count=8, size=64)
    parts = [np.flatnonzero(topic % 4 == number) for number in range(4)]
    order = similar_groups(vectors, np.ones(len(vectors), np.int64), 4, 0, parts)
    assert sorted(order.tolist()) == list(range(len(vectors)))
    groups = topic[order].reshape(-1, 4)
    assert all(len(set((group % 4).tolist())) == 1 for group in groups)
    assert np.mean([len(set(group.tolist())) == 1 for group in groups]) > 0.9


def test_one_part_is_no_part() -> None:
    vectors, _ = topics(count=8, size=16)
    copies = np.ones(len(vectors), np.int64)
    whole = [np.arange(len(vectors))]
    assert np.array_equal(similar_groups(vectors, copies, 8, 5, whole), similar_groups(vectors, copies, 8, 5))


def test_the_order_is_a_function_of_vectors_and_seed() -> None:
    vectors, _ = topics(count=8, size=16)
    assert np.array_equal(one_each(vectors, 8, seed=5), one_each(vectors, 8, seed=5))
    assert not np.array_equal(one_each(vectors, 8, seed=5), one_each(vectors, 8, seed=6))


@pytest.mark.parametrize("rows", [0, 1, 2, 8, 9, 63])
def test_few_rows_and_equal_ones_are_ordered(rows: int) -> None:
    assert sorted(one_each(np.ones((rows, 4), np.float32), 8).tolist()) == list(range(rows))


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 64), (40, 64), (64, 64), (103, 8), (1_000, 7), (1_000, 1)])
def test_clusters_stay_whole_when_they_are_shuffled(rows: int, size: int) -> None:
    order = np.random.default_rng(2).permutation(rows)
    place = np.argsort(order)
    for number in range(3):
        shuffled = shuffle_clusters(order, shuffle_bits(rows, 7, number, 0), size)
        assert sorted(shuffled.tolist()) == list(range(rows))
        whole = rows // size * size
        for start in range(0, whole, size):
            assert (np.diff(place[shuffled[start : start + size]]) == 1).all()
            assert place[shuffled[start]] % size == 0
        assert np.array_equal(shuffled[whole:], order[whole:])


def test_in_each_pass_other_clusters_meet() -> None:
    passes = [shuffle_clusters(np.arange(1_000), shuffle_bits(1_000, 7, number, 0), 10) for number in range(4)]
    assert len({tuple(each) for each in passes}) == 4
