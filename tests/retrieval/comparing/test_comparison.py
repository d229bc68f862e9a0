"""What is said of two evaluations, and how many queries would tell them apart."""

import numpy as np
import pytest

from biencoder.retrieval.comparing.comparison import Comparison, compare, verdict
from biencoder.retrieval.evaluate import DECIDING, Evaluation


def evaluation(values: np.ndarray) -> Evaluation:
    per_query = {DECIDING: {f"q{i}": float(value) for i, value in enumerate(values)}}
    return Evaluation({DECIDING: float(values.mean())}, per_query, len(values), 100, "made")


def compared(differences: np.ndarray, rounds: int = 500) -> Comparison:
    before = np.full(len(differences), 0.5)
    (found,) = compare(evaluation(before), evaluation(before + differences), rounds=rounds)
    return found


def test_with_as_many_queries_as_are_needed_four_tests_of_five_see_the_difference() -> None:
    random = np.random.default_rng(0)
    difference, spread = 0.02, 0.2
    large = random.normal(0, spread, 2000)
    few = compared(large - large.mean() + difference, rounds=4000)
    needed = few.queries_needed
    assert needed == pytest.approx((2.8 * spread / difference) ** 2, rel=0.1)
    seen = [compared(random.normal(difference, spread, needed)).p < 0.05 for _ in range(200)]
    assert 0.7 < np.mean(seen) < 0.9


def test_a_verdict_that_cannot_tell_says_how_many_queries_could() -> None:
    differences = np.array([0.3, -0.25] * 20)
    found = compared(differences)
    assert found.queries == 40
    assert found.queries_needed is not None
    assert found.queries_needed > 2 * 40  # a test that had enough would have seen it
    said = verdict([found], "my-model")
    assert said.startswith(f"No significant change in ndcg@10 (p = {found.p:.3f}): these data cannot tell")
    more = f"About {found.queries_needed:,} queries could, instead of 40, if the change is as large as it looks"
    assert said.endswith(f"{more} (+0.0250).")


def test_models_that_do_not_differ_need_no_more_queries() -> None:
    found = compared(np.zeros(40))
    assert found.queries_needed is None
    assert verdict([found], "my-model").endswith("cannot tell the two models apart.")


def test_a_clear_verdict_is_as_it_was() -> None:
    assert verdict([compared(np.full(40, 0.1))], "my-model").startswith("my-model is better: +0.1000 ndcg@10")
    assert verdict([compared(np.full(40, -0.1))], "my-model").startswith("my-model is WORSE: -0.1000 ndcg@10")
