"""``metrics.jsonl``: a line for every step and every evaluation."""

import json
import logging
from pathlib import Path
from typing import Any

from biencoder.distributed import rank
from biencoder.files import atomic_write
from biencoder.objective.objective import Objective
from biencoder.terminal import Progress
from biencoder.training.batch import TrainingBatch
from biencoder.training.gradcache import StepLosses
from biencoder.training.job import Job
from biencoder.training.watch.nonfinite import as_json, shown_mean

logger = logging.getLogger(__name__)


def log_step(
    job: Job,
    batch: TrainingBatch,
    losses: StepLosses,
    norm: float,
    rate: float,
    seconds: float,
    progress: Progress,
    more: dict[str, Any],
) -> None:
    """Write the line of a step, and show the means of the last ones.

    Args:
        job: that has just taken it.
        batch: it was taken on.
        losses: of it.
        norm: of the gradient, before clipping.
        rate: the learning rate.
        seconds: the step took, waiting for its batch included.
        progress: where the means are shown.
        more: fields of the line.
    """
    record: dict[str, Any] = {
        "step": job.step,
        "epoch": round(job.step / job.sampler.steps_per_epoch, 4),
        "loss": losses.total,
        "learning_rate": rate,
        "gradient_norm": norm,
        "queries": batch.total_queries,
        "seconds": round(seconds, 4),
        "queries_per_second": round(batch.total_queries / seconds, 3),
        "tokens_per_second": round(batch.tokens * job.batcher.world / seconds, 1),
    }
    if len(job.objectives) > 1:
        record["data_set"] = job.config.data_sets[batch.data_set].name
    if batch.labels.teacher is not None and isinstance(job.objectives[batch.data_set], Objective):
        record |= {"contrastive": losses.contrastive, "distillation": losses.distillation}
    write_metrics(job, record | more)
    job.recent.append((losses.total, batch.total_queries, seconds))
    recent, queries, spent = zip(*job.recent, strict=True)
    progress.update(job.step, **{"loss": shown_mean(recent), "queries/s": f"{sum(queries) / sum(spent):.1f}"})


def write_metrics(job: Job, record: dict[str, Any]) -> None:
    """Append a line to ``metrics.jsonl`` (rank 0)."""
    if rank() == 0:
        with (job.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(as_json(record), allow_nan=False) + "\n")


def forget_metrics_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run takes again, and a line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            logger.warning("%s: a line that a killed run left unfinished is dropped", path)
    with atomic_write(path) as file:
        file.writelines(kept)
