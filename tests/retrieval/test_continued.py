"""A figure among few passages, continued to more, is what more give."""

import math

import numpy as np
import pytest

from biencoder.retrieval.continued import CUT, TAIL, expected_ndcg


def simulated(answer: float, passages: int, rounds: int = 4000) -> float:
    """The mean nDCG@10 of an answer among passages whose scores fall off exponentially."""
    draw = np.random.default_rng(0)
    above = (draw.exponential(0.1, (rounds, passages)) > answer).sum(axis=1)
    return float(np.where(above < CUT, 1 / np.log2(above + 2), 0.0).mean())


@pytest.mark.parametrize("answer", [0.5, 0.7, 0.9])
def test_among_more_passages_the_figure_is_what_more_give(answer: float) -> None:
    """Ten exceedances know their scale within a third, so the estimate is a little blurred."""
    draw, truth = np.random.default_rng(1), simulated(answer, 3000)
    few = [np.sort(draw.exponential(0.1, 300))[::-1] for _ in range(500)]
    estimate = float(np.mean([expected_ndcg(answer, wrong[: TAIL + 1].tolist(), 300, times=10) for wrong in few]))
    assert estimate == pytest.approx(truth, abs=0.1)
    assert abs(estimate - truth) < abs(simulated(answer, 300) - truth) / 3


def test_a_wider_gap_is_a_better_figure_where_the_rank_is_the_same() -> None:
    wrong = [0.5 - i / 100 for i in range(TAIL + 1)]
    figures = [expected_ndcg(answer, wrong, 300) for answer in (0.51, 0.6, 0.8)]
    assert figures == sorted(figures)
    assert figures[-1] > 0.97 > 0.5 > figures[0]
    scaled = [expected_ndcg(2 * answer + 1, [2 * score + 1 for score in wrong], 300) for answer in (0.51, 0.6, 0.8)]
    assert scaled == pytest.approx(figures)


def test_where_no_tail_is_the_share_that_scores_above_counts() -> None:
    assert expected_ndcg(0.5, [], 0) == 1.0
    assert expected_ndcg(0.5, [0.4, 0.3], 2) == 1.0
    assert expected_ndcg(0.1, [0.9] * (TAIL + 1), 1000) == pytest.approx(0.0, abs=1e-9)
    assert expected_ndcg(0.9, [0.5] * (TAIL + 1), 1000) == 1.0
    once = sum(math.exp(-10) * 10**i / math.factorial(i) / math.log2(i + 2) for i in range(CUT))
    assert expected_ndcg(0.5, [0.6, 0.4], 2) == pytest.approx(once)  # of 20 passages, 10 score above
