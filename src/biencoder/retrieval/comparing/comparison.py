"""Compare two evaluations of the same queries: is one model better than the other?"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from biencoder.retrieval.comparing.significance import bootstrap_interval, paired_randomization_test
from biencoder.retrieval.evaluate import DECIDING, Evaluation

ROUNDS = 10_000
INTERVAL = 2 * 1.96  # standard errors from one end of a 95% interval to the other
POWER = 1.96 + 0.84  # standard errors that a difference must be for a test at 5% to see it four times out of five
SIGNIFICANT = 0.05
HOW_COMPARED = (
    "p is from a paired randomisation test over the queries, the interval from a bootstrap over them. "
    "Nothing corrects for testing several measures."
)
SIGNIFICANCE = {
    "p": "two-sided paired randomisation test over queries",
    "interval": "95% percentile bootstrap of the mean difference over queries",
    "rounds": ROUNDS,
    "correction": "none; each p-value is about one measure alone",
}


@dataclass(frozen=True)
class Comparison:
    """A measure before and after, on the same queries.

    Attributes:
        measure: its name.
        before: mean before.
        after: mean after.
        difference: ``after - before``.
        low: lower bound of the 95% bootstrap interval of the difference.
        high: its upper bound.
        p: two-sided p-value of the paired randomisation test.
        queries: how many there are.
    """

    measure: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float
    queries: int

    @property
    def queries_needed(self) -> int | None:
        """Queries with which a test at 5% sees a difference as large as this one four times out of five.

        Cohen 1988, "Statistical Power Analysis", section 2.4, for the mean of paired differences. None if there is no
        difference.
        """
        if not self.difference or self.low == self.high:
            return None
        error = (self.high - self.low) / INTERVAL
        return math.ceil(self.queries * (POWER * error / self.difference) ** 2)


def compare(before: Evaluation, after: Evaluation, *, rounds: int = ROUNDS, seed: int = 0) -> list[Comparison]:
    """Each measure before and after, with a paired randomisation test and a bootstrap interval over queries.

    Raises:
        ValueError: the two are not evaluations of the same queries by the same measures.
    """
    first, *_ = before.per_query.values()
    query_ids = sorted(first)
    if list(before.per_query) != list(after.per_query) or query_ids != sorted(next(iter(after.per_query.values()))):
        raise ValueError("the evaluations must have the same queries and measures")
    values_before, values_after = (
        np.array([[values[query] for values in each.per_query.values()] for query in query_ids])
        for each in (before, after)
    )
    p = paired_randomization_test(values_before, values_after, rounds=rounds, seed=seed)
    low, high = bootstrap_interval(values_before, values_after, rounds=rounds, seed=seed)
    return [
        Comparison(
            measure=measure,
            before=before.metrics[measure],
            after=after.metrics[measure],
            difference=after.metrics[measure] - before.metrics[measure],
            low=float(low[column]),
            high=float(high[column]),
            p=float(p[column]),
            queries=len(query_ids),
        )
        for column, measure in enumerate(before.per_query)
    ]


COMPARISON_COLUMNS = ["measure", "before", "after", "difference", "95% interval", "p"]


def comparison_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Comparisons as the text of a table's cells, under :data:`COMPARISON_COLUMNS`."""
    return [
        [
            each.measure,
            f"{each.before:.4f}",
            f"{each.after:.4f}",
            f"{each.difference:+.4f}",
            f"{each.low:+.4f} to {each.high:+.4f}",
            f"{each.p:.4f}",
        ]
        for each in comparisons
    ]


def verdict(comparisons: Sequence[Comparison], model: str) -> str:
    """One sentence by :data:`DECIDING`: better, worse, or not to be told apart.

    Args:
        comparisons: the model against its baseline.
        model: what to call the model, at the start of the sentence.
    """
    deciding = deciding_of(comparisons)
    if deciding.p >= SIGNIFICANT:
        said = (
            f"No significant change in {DECIDING} (p = {deciding.p:.3f}): these data cannot tell the two models apart."
        )
        needed = deciding.queries_needed
        if needed is None:
            return said
        return (
            f"{said} About {needed:,} queries could, instead of {deciding.queries:,}, if the change is as large as it "
            f"looks ({deciding.difference:+.4f})."
        )
    direction = "better" if deciding.difference > 0 else "WORSE"
    return f"{model} is {direction}: {deciding.difference:+.4f} {DECIDING} (p = {deciding.p:.4f})."


def deciding_of(comparisons: Sequence[Comparison]) -> Comparison:
    """The comparison by :data:`DECIDING`."""
    return next(each for each in comparisons if each.measure == DECIDING)


def comparison_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Comparisons as ``eval.json`` holds them."""
    return [asdict(each) for each in comparisons]
