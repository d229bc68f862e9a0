"""One optimizer step, from a batch to changed weights."""

from dataclasses import dataclass

import torch

from biencoder.distributed import sum_gradients
from biencoder.training.batch import TrainingBatch
from biencoder.training.gradcache import StepLosses
from biencoder.training.optimizer import learning_rate_at
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.steps.nonfinite import NonFinite, find_nonfinite
from biencoder.training.steps.smaller_chunks import accumulate_within_memory


@dataclass(frozen=True)
class StepResult:
    """What a step came to.

    Attributes:
        losses: of the batch.
        gradient_norm: L2 norm of the gradient over all weights and ranks, before clipping.
        learning_rate: of this step.
        nonfinite: what was not finite; the weights are unchanged then. None for a sound step.
    """

    losses: StepLosses
    gradient_norm: float
    learning_rate: float
    nonfinite: NonFinite | None


def train_step(setup: Setup, progress: TrainingProgress, batch: TrainingBatch) -> StepResult:
    """Take one optimizer step on a batch.

    Encode the texts, score queries against the passages of all ranks, send the gradient of the loss back through the
    model (:func:`~biencoder.training.gradcache.accumulate_gradients` does these three), add up gradients over ranks,
    clip, update.

    Args:
        setup: model, optimizer and objectives.
        progress: which step this is, and how much memory it may take. Memory that runs out changes the latter.
        batch: this rank's share of the global batch.

    Raises:
        TrainingError: memory runs out with one text at a time.
    """
    losses = accumulate_within_memory(setup, progress, batch)
    sum_gradients(setup.trained)
    norm = float(torch.nn.utils.clip_grad_norm_(setup.trained, setup.config.max_grad_norm))
    nonfinite = find_nonfinite(setup, progress, losses, norm)
    rate = _set_learning_rate(setup, progress.step)
    if nonfinite is None:
        setup.optimizer.step()
    setup.optimizer.zero_grad()
    return StepResult(losses, norm, rate, nonfinite)


def _set_learning_rate(setup: Setup, step: int) -> float:
    rate = learning_rate_at(
        step,
        peak=setup.highest_rate,
        total=setup.total_steps,
        warmup=setup.warmup_steps,
        schedule=setup.config.schedule,
    )
    for group in setup.optimizer.param_groups:
        group["lr"] = rate
    return rate
