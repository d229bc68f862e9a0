"""``metrics.jsonl``: a line for every step and every evaluation."""

import json
import logging
from pathlib import Path
from typing import Any

from biencoder.distributed import rank
from biencoder.files import atomic_write
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.terminal import ProgressLine
from biencoder.training.batch import TrainingBatch
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.steps.nonfinite import as_json, shown_mean
from biencoder.training.steps.train_step import StepResult

GUARDS = "guards"  # in a line with the figures on guard data

logger = logging.getLogger(__name__)


def log_step(
    setup: Setup,
    progress: TrainingProgress,
    batch: TrainingBatch,
    taken: StepResult,
    seconds: float,
    line: ProgressLine,
    more: dict[str, Any],
) -> None:
    """Write the line of a step, and show the means of the last ones.

    Args:
        setup: of the run.
        progress: after the step.
        batch: the step was taken on.
        taken: what the step came to.
        seconds: the step took, waiting for its batch included.
        line: where the means are shown.
        more: further fields of the line.
    """
    record: dict[str, Any] = {
        "step": progress.step,
        "epoch": round(progress.step / progress.sampler.steps_per_epoch, 4),
        "loss": taken.loss,
        "learning_rate": taken.learning_rate,
        "gradient_norm": taken.gradient_norm,
        "queries": batch.total_queries,
        "seconds": round(seconds, 4),
        "queries_per_second": round(batch.total_queries / seconds, 3),
        "tokens_per_second": round(batch.tokens * progress.batcher.world / seconds, 1),
    }
    if len(setup.objectives) > 1:
        record["data_set"] = setup.config.data_sets[batch.data_set].name
    if batch.labels.teacher is not None and isinstance(setup.objectives[batch.data_set], ContrastiveObjective):
        record |= {"contrastive": taken.contrastive, "distillation": taken.distillation}
    if setup.sparsity is not None:
        record["sparsity"] = taken.sparsity
    if setup.scaler.is_enabled():
        record |= {"loss_scale": setup.scaler.get_scale(), "overflowed": taken.overflowed}
    write_metrics(setup, record | more)
    progress.recent.append((taken.loss, batch.total_queries, seconds))
    recent, queries, spent = zip(*progress.recent, strict=True)
    line.update(progress.step, **{"loss": shown_mean(recent), "queries/s": f"{sum(queries) / sum(spent):.1f}"})


def write_metrics(setup: Setup, record: dict[str, Any]) -> None:
    """Append a line to ``metrics.jsonl`` (rank 0)."""
    if rank() == 0:
        with (setup.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(as_json(record), allow_nan=False) + "\n")


def forget_metrics_after(path: Path, step: int) -> None:
    """Remove the lines of steps that a resumed run takes again, and a line that was cut off."""
    if not path.exists():
        return
    earlier = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            is_of_the_end = GUARDS in record and record["step"] > 0  # which comes again
            if record["step"] <= step and not is_of_the_end:
                earlier.append(line + "\n")
        except json.JSONDecodeError:
            logger.warning("%s: dropped a line that a killed run left unfinished", path)
    with atomic_write(path) as file:
        file.writelines(earlier)


def last_evaluation_seconds(path: Path) -> float:
    """How long the last evaluation took that the file knows of, in seconds; 0 if it knows of none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    newest = next((json.loads(line) for line in reversed(lines) if '"evaluation"' in line), {"seconds": 0.0})
    return float(newest.get("seconds", 0.0))
