"""``metrics.jsonl`` as curves and sums. A run may have a million steps, and a chart has room for a few hundred."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biencoder.errors import UserError
from biencoder.retrieval.evaluate import DECIDING

POINTS = 240  # of a curve
SMOOTHED = 0.05  # share of the steps whose mean a smoothed point is
FEW = 8  # points that are not smoothed

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
    trained: list[list[float]] = []
    evaluated: list[list[float]] = []
    number = 0
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):  # noqa: B007 - a message names it
                _add(json.loads(line), trained, evaluated)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}:{number}: not a line that biencoder wrote ({error})") from error
    return _curves(np.array(trained).reshape(-1, 7).T, np.array(evaluated).reshape(-1, 4).T)


def _add(line: dict[str, Any], trained: list[list[float]], evaluated: list[list[float]]) -> None:
    """Add the figures of a line where they belong; those on guard data belong nowhere."""
    if "guards" in line:
        return
    if "evaluation" in line:
        evaluated.append([_finite(line["step"]), _finite(line["evaluation"][DECIDING])])
        evaluated[-1] += [_finite(line.get(name, 0)) for name in ("seconds", "peak_bytes")]  # 0: an older version
        return
    diverging = [float(line[name]) for name in ("loss", "gradient_norm")]  # which may be NaN, in words
    steady = ("step", "learning_rate", "queries", "seconds", "tokens_per_second")
    trained.append([*diverging, *(_finite(line[name]) for name in steady)])


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{value} is not finite")
    return number


def _curves(trained: Floats, evaluations: Floats) -> Curves:
    loss, norm, steps, rate, queries, seconds, tokens_per_second = trained
    evaluated_steps, evaluated, spent, peaks = evaluations
    parts = np.array_split(np.arange(len(steps)), min(POINTS, max(1, len(steps))))
    return Curves(
        steps=_means(steps, parts),
        loss=_means(loss, parts),
        smooth_loss=_smoothed(_means(loss, parts)),
        learning_rate=_means(rate, parts),
        gradient_norm=_means(norm, parts),
        evaluated_steps=evaluated_steps,
        evaluated=evaluated,
        last_step=int(steps.max(initial=0)),
        queries=int(queries.sum()),
        tokens=float((tokens_per_second * seconds).sum()),
        training_seconds=float(seconds.sum()),
        evaluation_seconds=float(spent.sum()) or None,
        peak_bytes=int(peaks.max(initial=0)) or None,
    )


def _means(values: Floats, parts: list[NDArray[np.int64]]) -> Floats:
    finite = [values[part][np.isfinite(values[part])] for part in parts]
    return np.array([each.mean() if len(each) else np.nan for each in finite], np.float64)


def _smoothed(values: Floats) -> Floats:
    """Means over a window around each value, which is smaller at the ends."""
    reach = max(int(len(values) > FEW), int(len(values) * SMOOTHED / 2))
    return np.array(
        [
            window[np.isfinite(window)].mean() if np.isfinite(window).any() else np.nan
            for window in (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
        ],
        np.float64,
    )
