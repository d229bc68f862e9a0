import itertools

import numpy as np
import pytest

from biencoder.retrieval.comparing.significance import bootstrap_interval, paired_randomization_test

random = np.random.default_rng(0)


def exact_p(differences: np.ndarray) -> float:
    """The share of all 2^Q swaps that give at least the observed difference."""
    signs = np.array(list(itertools.product([-1, 1], repeat=len(differences))))
    sums = np.abs(signs @ differences)
    return float((sums >= abs(differences.sum()) - 1e-12).mean())


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3])
def test_p_is_the_exact_one_up_to_sampling(shift: float) -> None:
    before = random.random(12)
    after = before + random.normal(shift, 0.3, 12)
    p = float(paired_randomization_test(before, after, rounds=40_000))
    assert p == pytest.approx(exact_p(after - before), abs=0.01)


def test_ties_with_the_observed_difference_count() -> None:
    # Ten equal differences whose sums depend on rounding: the observed |sum| is reached by 2 of 1,024 swaps.
    before, after = np.zeros(10), np.full(10, 0.1)
    p = float(paired_randomization_test(before, after, rounds=50_000))
    assert p == pytest.approx(2 / 1024, rel=0.3)
    assert float(paired_randomization_test(np.zeros(3), np.array([0.1, 0.2, -0.3]))) == 1.0
    for _ in range(50):
        after = random.choice([0.1, 0.2, 0.3, 0.7], 6)
        p = float(paired_randomization_test(np.zeros(6), after, rounds=10_000))
        assert p == pytest.approx(exact_p(after), abs=0.02)


def test_p_is_never_zero_and_one_for_equals() -> None:
    before = random.random(500)
    assert float(paired_randomization_test(before, before + 1, rounds=999)) == 1 / 1000
    assert float(paired_randomization_test(before, before, rounds=999)) == 1.0


def test_p_is_two_sided_and_repeatable() -> None:
    before, after = random.random(50), random.random(50)
    p = paired_randomization_test(before, after, seed=3)
    assert p == paired_randomization_test(after, before, seed=3) == paired_randomization_test(before, after, seed=3)


def test_p_is_uniform_when_nothing_differs() -> None:
    values = [
        float(paired_randomization_test(random.normal(size=40), random.normal(size=40), rounds=500, seed=i))
        for i in range(400)
    ]
    assert np.mean(np.array(values) < 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


def test_each_measure_has_its_own_p_and_interval() -> None:
    before = random.random((80, 3))
    after = before + np.array([0.0, 0.01, 0.5]) + random.normal(0, 0.1, (80, 3))
    p = paired_randomization_test(before, after)
    low, high = bootstrap_interval(before, after)
    assert p.shape == low.shape == high.shape == (3,)
    for column in range(3):
        assert p[column] == paired_randomization_test(before[:, column], after[:, column])
        alone = bootstrap_interval(before[:, column], after[:, column])
        np.testing.assert_allclose((low[column], high[column]), alone)
    assert p[2] < 0.001 < p[0]


def test_interval_is_the_normal_one_for_many_queries() -> None:
    before = random.random(3000)
    differences = random.normal(0.02, 0.1, 3000)
    low, high = bootstrap_interval(before, before + differences)
    error = differences.std() / np.sqrt(3000)
    assert float(low) == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
    assert float(high) == pytest.approx(differences.mean() + 1.96 * error, abs=0.1 * error)


def test_interval_narrows_with_its_level_and_is_repeatable() -> None:
    before, after = random.random(60), random.random(60)
    wide, narrow = bootstrap_interval(before, after, level=0.99), bootstrap_interval(before, after, level=0.8)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap_interval(before, after, seed=5) == bootstrap_interval(before, after, seed=5)


@pytest.mark.parametrize("test", [paired_randomization_test, bootstrap_interval])
def test_different_queries_cannot_be_compared(test: object) -> None:
    assert callable(test)
    with pytest.raises(ValueError, match="same queries"):
        test(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="at least one"):
        test(np.zeros(0), np.zeros(0))
