"""Is a difference between two systems on the same queries more than chance?

Shapes: Q queries, M measures, R rounds.
"""

import numpy as np

DRAWS = 1 << 22  # random numbers held at a time


def paired_randomization_test(
    before: np.ndarray, after: np.ndarray, *, rounds: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Two-sided p-values of the paired randomisation test (Smucker, Allan and Carterette, CIKM 2007).

    If both systems were equal, swapping a query's two values would change nothing. The p-value is the share of random
    swaps whose mean difference is at least as large as the observed one. The observed labelling counts as one swap, so
    p is never 0: (c + 1) / (R + 1).

    Args:
        before: ``[Q]`` or ``[Q, M]``, a value for each query (and measure).
        after: the same shape, the same queries in the same order.
        rounds: how many times to swap all queries at random.
        seed: seed of the random numbers; equal seeds give equal p-values.

    Returns:
        ``[]`` or ``[M]`` float64.

    Raises:
        ValueError: the shapes differ, or there is no query.
    """
    differences_QM = _differences(before, after)
    queries = len(differences_QM)
    observed = np.abs(differences_QM.sum(axis=0))
    # Sums of the same terms in another order differ in their last bits, and ties with the observed sum must count.
    threshold = observed - 1e-9 * np.abs(differences_QM).sum(axis=0)
    random = np.random.default_rng(seed)
    at_least = np.zeros(observed.shape, np.int64)
    for chunk in _chunks(rounds, queries):
        signs_RQ = random.integers(0, 2, (chunk, queries), dtype=np.int8) * 2.0 - 1.0
        at_least += (np.abs(signs_RQ @ differences_QM) >= threshold).sum(axis=0)
    p: np.ndarray = (at_least + 1) / (rounds + 1)
    return p


def bootstrap_interval(
    before: np.ndarray, after: np.ndarray, *, level: float = 0.95, rounds: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean difference ``after - before`` over queries (Efron 1979).

    Args:
        before: ``[Q]`` or ``[Q, M]``, a value for each query (and measure).
        after: the same shape, the same queries in the same order.
        level: the share of resamples between the bounds.
        rounds: how many times to resample the queries, with replacement.
        seed: seed of the random numbers; equal seeds give equal bounds.

    Returns:
        Lower and upper bounds, each ``[]`` or ``[M]`` float64.

    Raises:
        ValueError: the shapes differ, or there is no query.
    """
    differences_QM = _differences(before, after)
    queries = len(differences_QM)
    random = np.random.default_rng(seed)
    means = []
    for chunk in _chunks(rounds, queries):
        drawn = random.integers(0, queries, (chunk, queries)) + np.arange(chunk)[:, None] * queries
        counts_RQ = np.bincount(drawn.ravel(), minlength=chunk * queries).reshape(chunk, queries)
        means.append(counts_RQ @ differences_QM / queries)
    bounds: np.ndarray = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return bounds[0], bounds[1]


def _differences(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape or len(before) == 0:
        raise ValueError(f"both need values of the same queries, at least one; got {before.shape} and {after.shape}")
    difference: np.ndarray = after - before
    return difference


def _chunks(rounds: int, queries: int) -> list[int]:
    step = max(1, DRAWS // queries)
    return [min(step, rounds - start) for start in range(0, rounds, step)]
