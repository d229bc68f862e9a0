"""The training loop: batches are prepared ahead, and each of them is one ``train_step``.

After a step come its line in ``metrics.jsonl``, an evaluation, a checkpoint, or the end by a signal, when they are due.
"""

import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import NoReturn

from biencoder.device.ahead import made_ahead
from biencoder.distributed import barrier, rank
from biencoder.errors import Stopped
from biencoder.terminal import ProgressLine
from biencoder.training.batch import TrainingBatch
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.sources.clusters import use_clusters
from biencoder.training.sources.negatives import use_hard_negatives
from biencoder.training.state.checkpoint import checkpoint_path
from biencoder.training.steps.evaluation import evaluate_and_keep_best, evaluation_steps
from biencoder.training.steps.forecast import Forecast
from biencoder.training.steps.metrics_file import log_step
from biencoder.training.steps.nonfinite import count_or_stop
from biencoder.training.steps.snapshot import save
from biencoder.training.steps.train_step import StepResult, train_step
from biencoder.training.watch.signals import stop_asked

logger = logging.getLogger(__name__)


def train_steps(setup: Setup, progress: TrainingProgress, line: ProgressLine) -> None:
    """Take the steps that are left, in batches of similar rows and with the hard negatives that are due.

    Args:
        setup: of the run.
        progress: where the run stands; it moves on with each step.
        line: where the loss and the time left are shown.

    Raises:
        TrainingError: numbers that are not finite, or no memory for one text.
        Stopped: a signal asked for the end; the step is finished and there is a checkpoint.
    """
    use_clusters(setup, progress)
    forecast = None
    while progress.step < setup.total_steps:
        began = time.perf_counter()
        until = use_hard_negatives(setup, progress)
        progress.spent.mining = max(progress.spent.mining, time.perf_counter() - began)
        forecast = forecast or Forecast(setup, progress)
        _train_until(until, setup, progress, line, forecast)


def _train_until(step: int, setup: Setup, progress: TrainingProgress, line: ProgressLine, forecast: Forecast) -> None:
    setup.encoder.train()
    began = time.perf_counter()
    for batch, on_device in _prepared_ahead(setup, progress, step):
        taken = train_step(setup, progress, on_device)
        more = _watch(setup, progress, batch, taken)
        if taken.nonfinite is not None:
            more["nonfinite"] = taken.nonfinite.to_json()
        progress.step += 1
        seconds = time.perf_counter() - began
        log_step(setup, progress, batch, taken, seconds, line, more)
        forecast.after_step(batch.tokens, seconds)
        progress.skipped.overflows += taken.overflowed
        nonfinite = taken.nonfinite
        del taken  # and its representations, before the next step makes its own
        count_or_stop(setup, progress, nonfinite)
        _evaluate_save_or_stop(setup, progress)
        began = time.perf_counter()


def _evaluate_save_or_stop(setup: Setup, progress: TrainingProgress) -> None:
    evaluated = _evaluation_due(setup, progress)
    if evaluated:
        evaluate_and_keep_best(setup, progress)
    stopping = stop_asked()
    if evaluated or stopping or progress.step % setup.config.save_steps == 0:
        save(setup, progress)
    if stopping:
        _stop(setup, progress, stopping)


def _stop(setup: Setup, progress: TrainingProgress, number: int) -> NoReturn:
    barrier()  # the first rank to leave ends all of them, and rank 0 may still be writing
    newest = checkpoint_path(setup.checkpoints, progress.step)
    raise Stopped(number, f"after step {progress.step:,} of {setup.total_steps:,}, which {newest} holds")


def _prepared_ahead(
    setup: Setup, progress: TrainingProgress, until: int
) -> Iterator[tuple[TrainingBatch, TrainingBatch]]:
    """The batches of the steps up to ``until``, as they are and on the device.

    The next one is tokenised and copied while the present one trains.
    """

    def prepare(step: int) -> tuple[TrainingBatch, TrainingBatch]:
        batch = progress.batcher(progress.sampler.plan(step))
        return batch, batch.to(setup.encoder.device)

    return made_ahead((partial(prepare, step) for step in range(progress.step, until)), setup.encoder.device)


def _watch(setup: Setup, progress: TrainingProgress, batch: TrainingBatch, taken: StepResult) -> dict[str, object]:
    """What rank 0's watch sees in a step; it warns of what is wrong."""
    if rank() != 0:
        return {}
    objective, is_warm = setup.objectives[batch.data_set], progress.step >= setup.warmup_steps
    figures, warnings = progress.watch.after(
        progress.step, batch, objective, contrastive=taken.contrastive, texts=taken.texts, is_warm=is_warm
    )
    for warning in warnings:
        logger.warning("step %d: %s", progress.step + 1, warning)
    return dict(figures)


def _evaluation_due(setup: Setup, progress: TrainingProgress) -> bool:
    return progress.step == setup.total_steps or progress.step % evaluation_steps(setup, progress) == 0
