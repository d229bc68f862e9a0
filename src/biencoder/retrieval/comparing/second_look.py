"""Cross-validation (Stone 1974): a comparison over all queries, each by a model that was trained without it.

Data that need a second look have few passages. Among these, most queries find their answer, whichever model asks. So
the verdict is about more passages of the same kind (:mod:`~biencoder.retrieval.continued`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from biencoder.retrieval.comparing.comparison import SIGNIFICANT, Comparison, compare
from biencoder.retrieval.continued import TIMES
from biencoder.retrieval.evaluate import DECIDING, Evaluation

LOOKS = 2  # at one question; p-values are multiplied by it (Bonferroni)
BEYOND = f"{DECIDING}, continued"


@dataclass(frozen=True)
class SecondLook:
    """What models that were each trained on a part of the data say of the queries in the other parts.

    Attributes:
        description: of the queries, for people.
        comparison: each measure by the base and by those models, and :data:`BEYOND`, the expected nDCG@10 among more
            passages; p-values are doubled.
    """

    description: str
    comparison: list[Comparison]

    @property
    def deciding(self) -> Comparison:
        """The comparison by :data:`BEYOND`: few passages are told apart by any model."""
        by_measure = {each.measure: each for each in self.comparison}
        return by_measure.get(BEYOND, by_measure[DECIDING])  # a file of an older version has no other

    def sentence(self) -> str:
        """The verdict: better, worse, or not to be told apart."""
        found = self.deciding
        said = (
            f"{found.difference:+.4f} {DECIDING} over {self.description}, by estimate, among {TIMES} times as many "
            f"passages (p = {found.p:.4f})"
        )
        if found.p >= SIGNIFICANT:
            return f"Cross-validation cannot tell the two apart either: {said}."
        direction = "better" if found.difference > 0 else "WORSE"
        return f"By cross-validation, training makes the model {direction}: {said}."

    def to_json(self) -> dict[str, Any]:
        """What ``eval.json`` holds of it."""
        return asdict(self) | {"deciding": self.deciding.measure}


def second_look(parts: Sequence[tuple[Evaluation, Evaluation]]) -> SecondLook:
    """From the evaluations before and after of each part, with findings.

    Raises:
        ValueError: the parts share a query, or were evaluated by different measures.
    """
    before, after = (_pooled([part[side] for part in parts]) for side in (0, 1))
    comparison = [replace(each, p=min(1.0, LOOKS * each.p)) for each in compare(before, after)]
    return SecondLook(f"all {before.queries:,} queries", comparison)


def _pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    per_query: dict[str, dict[str, float]] = {}
    for each in evaluations:
        assert each.findings is not None
        for measure, values in {**each.per_query, BEYOND: each.findings.beyond}.items():
            per_query.setdefault(measure, {}).update(values)
    queries = sum(each.queries for each in evaluations)
    if any(len(values) != queries for values in per_query.values()):
        raise ValueError("no query may be in two parts, and all must have the same measures")
    means = {measure: float(np.mean(list(values.values()))) for measure, values in per_query.items()}
    documents = max(each.documents for each in evaluations)
    return Evaluation(means, per_query, queries, documents, evaluations[0].description)
