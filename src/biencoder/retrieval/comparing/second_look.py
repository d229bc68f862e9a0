"""Cross-validation (Stone 1974): a comparison over all queries, each by a model that was trained without it.

Models between the base and the tuned one (of weights averaged with the base's) are asked too. Few rows make a tuned
model that is better on some topics and worse on others, and one nearer to the base is often better on nearly all. The
queries of a part are answered by the share of the base that the other parts prefer, so no query takes part in the
choice of what it judges.

Data that need a second look have few passages. Among these, most queries find their answer, whichever model asks. So
the verdict is about more passages of the same kind (:mod:`~biencoder.retrieval.continued`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from biencoder.retrieval.comparing.comparison import SIGNIFICANT, Comparison, compare
from biencoder.retrieval.continued import TIMES
from biencoder.retrieval.evaluate import DECIDING, Evaluation

Part: TypeAlias = tuple[Evaluation, Sequence[Evaluation]]  # before, and after with several shares of the base

STANDARD_ERRORS = 1.96  # to either side of a mean, for 95%
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


def second_look(parts: Sequence[Part]) -> SecondLook:
    """What the queries of all parts say.

    Args:
        parts: all of them, with the same shares of the base.

    Raises:
        ValueError: the parts share a query, or were evaluated by different measures.
    """
    chosen = [most_certain([*parts[:n], *parts[n + 1 :]]) for n in range(len(parts))]
    before = _pooled([before for before, _ in parts])
    after = _pooled([afters[choice] for (_, afters), choice in zip(parts, chosen, strict=True)])
    comparison = [replace(each, p=min(1.0, LOOKS * each.p)) for each in compare(before, after)]
    return SecondLook(f"all {before.queries:,} queries", comparison)


def gains(parts: Sequence[Part]) -> NDArray[np.float64]:
    """By how much :data:`BEYOND` grows: ``[S, Q]`` for S shares of the base and all Q queries."""
    found = [
        [[_beyond(after)[query] - value for query, value in _beyond(before).items()] for after in afters]
        for before, afters in parts
    ]
    return np.concatenate([np.array(part) for part in found], axis=1)


def most_certain(parts: Sequence[Part]) -> int:
    """The place of the share whose gain has the highest lower end of a 95% interval."""
    found = gains(parts)
    least = found.mean(axis=1) - STANDARD_ERRORS * found.std(axis=1) / found.shape[1] ** 0.5
    return int(least.argmax())  # of equals the first, which keeps the least of the base


def _beyond(evaluation: Evaluation) -> dict[str, float]:
    assert evaluation.findings is not None
    return evaluation.findings.beyond


def _pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    per_query: dict[str, dict[str, float]] = {}
    for each in evaluations:
        for measure, values in {**each.per_query, BEYOND: _beyond(each)}.items():
            per_query.setdefault(measure, {}).update(values)
    queries = sum(each.queries for each in evaluations)
    if any(len(values) != queries for values in per_query.values()):
        raise ValueError("no query may be in two parts, and all must have the same measures")
    means = {measure: float(np.mean(list(values.values()))) for measure, values in per_query.items()}
    documents = max(each.documents for each in evaluations)
    return Evaluation(means, per_query, queries, documents, evaluations[0].description)
