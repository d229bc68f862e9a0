import numpy as np
import pytest

from biencoder.retrieval.mining.filters import (
    Funnel,
    Pairs,
    below_limit,
    below_the_top,
    by_chance,
    by_rank,
    in_order,
    not_listed,
    not_the_query,
    share_limit,
)

INDICES_QK = np.array([[4, 2, 0, 3], [1, 2, 4, 0]])


def test_not_listed() -> None:
    listed = Pairs.of(np.array([7, 7, 0, 7]), np.array([2, 3, 4, -1]), candidates=5)
    passes = not_listed(INDICES_QK, np.array([7, 0]), listed)
    assert passes.tolist() == [[True, False, True, False], [True, True, False, True]]
    assert not_listed(INDICES_QK, np.array([0, 1]), Pairs.of(np.array([0]), np.array([-1]), candidates=5)).all()


def test_a_listed_candidate_past_the_last_pair_is_looked_up_too() -> None:
    listed = Pairs.of(np.array([0]), np.array([1]), candidates=5)
    assert not_listed(np.array([[4, 1]]), np.array([3]), listed).tolist() == [[True, True]]


def test_not_the_query() -> None:
    passes = not_the_query(INDICES_QK, np.array([0, -1]))
    assert passes.tolist() == [[True, True, False, True], [True, True, True, True]]


def test_the_top_counts_only_what_is_still_in_the_running() -> None:
    keep = np.array([[False, True, True, True], [True, False, False, True]])
    assert (keep & below_the_top(keep, 1)).tolist() == [[False, False, True, True], [False, False, False, True]]
    assert (keep & below_the_top(keep, 0)).tolist() == keep.tolist()


def test_a_score_at_the_limit_does_not_pass() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]], np.float32)
    passes = below_limit(scores, np.array([0.5, 1.0], np.float32))
    assert passes.tolist() == [[False, False, True], [True, True, True]]


@pytest.mark.parametrize(
    ("positive", "share", "limit"), [(0.8, 0.95, 0.76), (0.8, 1.0, 0.8), (0.0, 0.9, 0.0), (-2.0, 0.9, -2.2)]
)
def test_the_limit_by_share_never_lies_above_the_positive(positive: float, share: float, limit: float) -> None:
    (found,) = share_limit(np.array([positive], np.float32), share)
    assert found == pytest.approx(limit)
    assert found <= np.float32(positive)


def test_the_first_in_order_are_chosen() -> None:
    keep = np.array([[True, False, True, True], [False, False, True, False]])
    assert in_order(keep, by_rank(INDICES_QK), 2).tolist() == [[True, False, True, False], [False, False, True, False]]
    columns = np.array([[3, 2, 1, 0], [3, 2, 1, 0]])
    assert in_order(keep, columns, 2).tolist() == [[False, False, True, True], [False, False, True, False]]


def test_chance_depends_on_seed_row_and_candidate_alone() -> None:
    indices, rows = np.arange(50)[None].repeat(3, axis=0), np.array([5, 8, 2])
    together = by_chance(indices, rows, seed=1)
    alone = by_chance(indices[1:2], rows[1:2], seed=1)
    assert together[1].tolist() == alone[0].tolist()
    assert sorted(alone[0].tolist()) == list(range(50))
    assert together[0].tolist() != together[1].tolist()
    assert by_chance(indices, rows, seed=2).tolist() != together.tolist()
    reversed_columns = by_chance(indices[:1, ::-1], rows[:1], seed=1)
    assert indices[0, ::-1][reversed_columns[0]].tolist() == indices[0][together[0]].tolist()


def test_chance_favours_no_rank() -> None:
    columns = by_chance(np.arange(10)[None].repeat(4000, axis=0), np.arange(4000), seed=0)
    first = np.bincount(columns[:, 0], minlength=10)
    assert abs(first - 400).max() < 5 * np.sqrt(400)


def test_the_funnel_counts_what_each_stage_removes_of_what_is_left() -> None:
    funnel = Funnel()
    for _ in range(2):
        keep = funnel.start(INDICES_QK)
        keep = funnel.apply("two", keep, INDICES_QK != 2)
        keep = funnel.apply("even", keep, INDICES_QK % 2 == 1)
    assert funnel.searched == 16
    assert funnel.rows() == [("two", 4, 12), ("even", 8, 4)]
