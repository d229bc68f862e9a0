"""``metrics.jsonl`` as curves and sums. A run may have a million steps, and a chart has room for a few hundred."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biencoder.errors import UserError
from biencoder.retrieval.evaluate import DECIDING

POINTS = 240  # of a curve
SMOOTHED = 0.05  # share of the steps whose mean a smoothed point is

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curves:
    """What a run measured while it trained.

    Attributes:
        steps: float64 ``[P]``, steps of the points, at most :data:`POINTS`.
        loss: ``[P]``, the mean of the steps around each point; NaN if none is finite.
        smooth_loss: ``[P]``, the mean of more steps.
        learning_rate: ``[P]``.
        gradient_norm: ``[P]``, before clipping.
        evaluated_steps: ``[E]``, the first is 0.
        evaluated: ``[E]``, nDCG@10.
        last_step: number of the last step.
        queries: trained on, over all steps.
        tokens: trained on, over all processes.
        training_seconds: of all steps, with waiting for their batches.
        evaluation_seconds: of all evaluations; None if the file does not say.
        peak_bytes: the most memory that a process held; None if the file does not say.
    """

    steps: Floats
    loss: Floats
    smooth_loss: Floats
    learning_rate: Floats
    gradient_norm: Floats
    evaluated_steps: Floats
    evaluated: Floats
    last_step: int
    queries: int
    tokens: float
    training_seconds: float
    evaluation_seconds: float | None
    peak_bytes: int | None


def read_curves(path: Path) -> Curves:
    """Read ``metrics.jsonl``.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    trained: list[tuple[float, ...]] = []
    evaluations: list[dict[str, Any]] = []
    number = 0
    try:
        for number, line in _lines(path):  # noqa: B007 - the message names it
            if "evaluation" in line:
                evaluations.append(line)
                float(line["step"]), float(line["evaluation"][DECIDING])
            elif "loss" in line:
                names = ("step", "loss", "learning_rate", "gradient_norm", "queries", "seconds", "tokens_per_second")
                trained.append(tuple(float(line[name]) for name in names))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}:{number + 1}: not a line that biencoder wrote ({error})") from error
    return _curves(np.array(trained, np.float64).reshape(-1, 7), evaluations)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            yield number, json.loads(line)


def _curves(trained: Floats, evaluations: list[dict[str, Any]]) -> Curves:
    steps, loss, rate, norm, queries, seconds, tokens_per_second = trained.T
    parts = np.array_split(np.arange(len(steps)), min(POINTS, max(1, len(steps))))
    spent = [each["seconds"] for each in evaluations if "seconds" in each]
    peaks = [each["peak_bytes"] for each in evaluations if each.get("peak_bytes")]
    return Curves(
        steps=_means(steps, parts),
        loss=_means(loss, parts),
        smooth_loss=_smoothed(_means(loss, parts)),
        learning_rate=_means(rate, parts),
        gradient_norm=_means(norm, parts),
        evaluated_steps=np.array([each["step"] for each in evaluations], np.float64),
        evaluated=np.array([each["evaluation"][DECIDING] for each in evaluations], np.float64),
        last_step=int(steps[-1]) if len(steps) else 0,
        queries=int(queries.sum()),
        tokens=float((tokens_per_second * seconds).sum()),
        training_seconds=float(seconds.sum()),
        evaluation_seconds=float(sum(spent)) if spent else None,
        peak_bytes=int(max(peaks)) if peaks else None,
    )


def _means(values: Floats, parts: list[NDArray[np.int64]]) -> Floats:
    finite = [values[part][np.isfinite(values[part])] for part in parts]
    return np.array([each.mean() if len(each) else np.nan for each in finite], np.float64)


def _smoothed(values: Floats) -> Floats:
    """Means over a window around each value, which is smaller at the ends."""
    reach = int(len(values) * SMOOTHED / 2)
    return np.array(
        [
            window[np.isfinite(window)].mean() if np.isfinite(window).any() else np.nan
            for window in (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
        ],
        np.float64,
    )
