"""A loss or a gradient that is not finite: which rows cause it, and whether the run continues without them.

All ranks decide alike. They judge by the loss of the global batch and by the norm of the summed gradient, which are the
same on all ranks, and never by what one rank has computed alone.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from biencoder.config.choices import SKIP
from biencoder.data.plan.sampling import BatchPlan, share
from biencoder.data.table import ExampleTable
from biencoder.distributed import gather_objects, max_over_ranks, rank, world_size
from biencoder.errors import TrainingError
from biencoder.model.parallel.sharded import own
from biencoder.training.gradcache import StepLosses
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup

logger = logging.getLogger(__name__)

LINES_SHOWN = 10  # of each file, on the terminal; metrics.jsonl has all

Lines = dict[str, list[int]]  # file to line numbers; for a Parquet file, to row numbers


@dataclass(frozen=True)
class NonFinite:
    """A step whose numbers are not finite.

    Attributes:
        step: counted from 1.
        loss: of the global batch.
        norm: of the gradient, before clipping.
        data_set: the data set of the batch, if there are several.
        rows: of the global batch.
        suspects: the rows whose own vectors, or else whose own loss, are not finite.
        weights: whether the weights themselves are not finite, so that no batch can be finite.
    """

    step: int
    loss: float
    norm: float
    data_set: str | None
    rows: Lines
    suspects: Lines = field(default_factory=dict)
    weights: bool = False

    def to_json(self) -> dict[str, Any]:
        """What ``metrics.jsonl`` records beside loss and norm."""
        return {"data_set": self.data_set, "rows": self.rows, "suspects": self.suspects, "weights": self.weights}

    def __str__(self) -> str:
        count = sum(map(len, self.rows.values()))
        batch = f"The batch: {count:,} row{'s' * (count != 1)}"
        batch += f" of data set {self.data_set}" if self.data_set else ""
        said = f"step {self.step:,}: the loss is {self.loss} and the gradient's norm {self.norm}. "
        said += f"{batch}, {_shown(self.rows)}. "
        if self.weights:
            return said + "The weights themselves are not finite: an earlier step ruined them"
        if not self.suspects:
            return said + "The loss of each row is finite; only the gradient is not"
        if self.suspects == self.rows:
            return said + "All of its rows are affected"
        return said + f"It comes from {_shown(self.suspects)}"


def find_nonfinite(
    setup: Setup, progress: TrainingProgress, losses: StepLosses, loss: float, norm: float
) -> NonFinite | None:
    """What is not finite in the step that is about to be taken; None for a sound one. The same on all ranks."""
    if math.isfinite(loss) and math.isfinite(norm):
        return None
    plan = progress.sampler.plan(progress.step)
    mine = share(len(plan.rows), rank(), world_size())
    found = gather_objects((_bad_by_vectors(plan, mine, losses), _bad_by_loss(mine, losses)))
    by_vectors, by_losses = (np.concatenate(places) for places in zip(*found, strict=True))
    return NonFinite(
        step=progress.step + 1,
        loss=loss,
        norm=norm,
        data_set=setup.config.data_sets[plan.data_set].name if len(setup.objectives) > 1 else None,
        rows=lines_of(setup.examples, plan.rows),
        suspects=lines_of(setup.examples, plan.rows[by_vectors if len(by_vectors) else by_losses]),
        weights=not weights_are_finite(setup),
    )


def _bad_by_vectors(plan: BatchPlan, mine: slice, losses: StepLosses) -> NDArray[np.int64]:
    """This rank's places in the batch where the query or a passage has a vector that is not finite.

    A passage with such a vector spoils the loss of every query that it is a negative for, so vectors tell more than
    losses.
    """
    bad = ~losses.texts.finite().cpu().numpy()
    queries, passages = bad[: len(losses.of_queries)], bad[len(losses.of_queries) :]
    first = int(plan.group_starts[mine.start])
    return np.union1d(mine.start + np.nonzero(queries)[0], plan.passage_row[first + np.nonzero(passages)[0]])


def _bad_by_loss(mine: slice, losses: StepLosses) -> NDArray[np.int64]:
    places: NDArray[np.int64] = mine.start + np.nonzero(~losses.of_queries.isfinite().cpu().numpy())[0]
    return places


def lines_of(table: ExampleTable, rows: NDArray[np.int64]) -> Lines:
    """The lines of some rows of the table, by file."""
    lines: Lines = {}
    for row in rows:
        file, _, line = table.location(int(row)).rpartition(":")
        lines.setdefault(file, []).append(int(line))
    return {file: sorted(numbers) for file, numbers in sorted(lines.items())}


def _shown(lines: Lines) -> str:
    parts = []
    for file, numbers in lines.items():
        first = ", ".join(map(str, numbers[:LINES_SHOWN])) + (", …" if len(numbers) > LINES_SHOWN else "")
        parts.append(f"{file}, line{'s' * (len(numbers) > 1)} {first}")
    return "; ".join(parts)


def weights_are_finite(setup: Setup) -> bool:
    """Whether all weights that learn are finite, including the head's, on all ranks; all of them ask."""
    trained = (own(p) for p in setup.trained)
    finite = all(bool(torch.stack(p.aminmax()).isfinite().all()) for p in trained if p.numel())
    return not max_over_ranks(int(not finite))


def count_or_stop(setup: Setup, progress: TrainingProgress, nonfinite: NonFinite | None) -> None:
    """Count a step that was not taken, or end the run; neither weights nor optimizer have changed.

    Raises:
        TrainingError: the run must not continue.
    """
    config, skipped = setup.config, progress.skipped
    if nonfinite is None:
        skipped.in_a_row = 0
        return
    if config.on_nonfinite == SKIP and not nonfinite.weights and skipped.in_a_row < config.max_nonfinite:
        skipped.total, skipped.in_a_row = skipped.total + 1, skipped.in_a_row + 1
        if rank() == 0:
            count = f"{skipped.in_a_row} in a row, at most {config.max_nonfinite}; {skipped.total} in all"
            logger.warning("%s. Skipped: %s", nonfinite, count)
        return
    if config.on_nonfinite == SKIP and not nonfinite.weights:
        mend = f"{skipped.in_a_row} steps before it were skipped, and --max-nonfinite is {config.max_nonfinite}. "
        mend += "So many in a row are not an accident: try a lower --learning-rate, or --precision fp32"
    else:
        mend = "Try a lower --learning-rate, or --precision fp32 (in another --output-dir)"
        mend += (
            "" if nonfinite.weights else "; or look at these rows; or go on without such batches: --on-nonfinite skip"
        )
    raise TrainingError(
        f"{nonfinite}. Stopped before the weights changed; metrics.jsonl names all rows. "
        f"{setup.newest_checkpoint_said}. {mend}"
    )


def refuse_ruined_weights(setup: Setup, progress: TrainingProgress) -> None:
    """Stop before weights that are not finite are evaluated, or saved over good ones.

    Raises:
        TrainingError: the weights are not finite.
    """
    if progress.step > 0 and not weights_are_finite(setup):
        raise TrainingError(
            f"step {progress.step:,}: the weights are no longer finite numbers, though its loss and gradient were. "
            f"They are not saved. {setup.newest_checkpoint_said}. Try a lower --learning-rate, or --precision fp32, in "
            "another --output-dir"
        )


def shown_mean(losses: Sequence[float]) -> str:
    """The mean of the finite losses, and how many are not finite."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    mean = f"{sum(finite) / len(finite):.4f}" if finite else "nan"
    return mean if len(finite) == len(losses) else f"{mean} ({len(losses) - len(finite)} of {len(losses)} not finite)"


def as_json(value: Any) -> Any:
    """The value with NaN and infinities, which JSON lacks, as the words that ``float`` and other languages read."""
    if isinstance(value, dict):
        return {key: as_json(each) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
