"""Cross-validation (Stone 1974): a comparison over all queries, each by a model that was trained without it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from biencoder.retrieval.comparing.comparison import SIGNIFICANT, Comparison, compare, deciding_of
from biencoder.retrieval.evaluate import DECIDING, Evaluation

LOOKS = 2  # at one question; p-values are multiplied by it (Bonferroni)


@dataclass(frozen=True)
class SecondLook:
    """What models that were each trained on a part of the data say of the queries in the other parts.

    Attributes:
        description: of the queries, for people.
        comparison: each measure by the base and by those models; p-values are doubled.
    """

    description: str
    comparison: list[Comparison]

    def sentence(self) -> str:
        """The verdict: better, worse, or not to be told apart."""
        deciding = deciding_of(self.comparison)
        said = f"{deciding.difference:+.4f} {DECIDING} over {self.description} (p = {deciding.p:.4f})"
        if deciding.p >= SIGNIFICANT:
            return f"Cross-validation cannot tell the two apart either: {said}."
        direction = "better" if deciding.difference > 0 else "WORSE"
        return f"By cross-validation, training makes the model {direction}: {said}."

    def to_json(self) -> dict[str, Any]:
        """What ``eval.json`` holds of it."""
        return asdict(self)


def second_look(parts: Sequence[tuple[Evaluation, Evaluation]]) -> SecondLook:
    """From the evaluations before and after of each part.

    Raises:
        ValueError: the parts share a query, or were evaluated by different measures.
    """
    before, after = (_pooled([part[side] for part in parts]) for side in (0, 1))
    comparison = [replace(each, p=min(1.0, LOOKS * each.p)) for each in compare(before, after)]
    return SecondLook(f"all {before.queries:,} queries", comparison)


def _pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    measures = list(evaluations[0].per_query)
    per_query: dict[str, dict[str, float]] = {
        measure: {query: value for each in evaluations for query, value in each.per_query[measure].items()}
        for measure in measures
    }
    queries = sum(each.queries for each in evaluations)
    if any(len(values) != queries for values in per_query.values()):
        raise ValueError("no query may be in two parts, and all must have the same measures")
    means = {measure: float(np.mean(list(values.values()))) for measure, values in per_query.items()}
    documents = max(each.documents for each in evaluations)
    return Evaluation(means, per_query, queries, documents, evaluations[0].description)
