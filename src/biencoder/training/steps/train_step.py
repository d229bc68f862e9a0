"""One optimizer step, from a batch to changed weights."""

import math
from dataclasses import dataclass

import torch

from biencoder.distributed import sum_gradients
from biencoder.model.representations.representation import Representation
from biencoder.training.batch import TrainingBatch
from biencoder.training.optimizer import clip_gradients, learning_rate_at, set_learning_rate
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.steps.nonfinite import NonFinite, find_nonfinite
from biencoder.training.steps.smaller_chunks import accumulate_within_memory

LEAST_SCALE = 1.0  # of a loss in float16: gradients that overflow without being scaled are not finite themselves


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step came to.

    Attributes:
        loss: mean over the queries of the global batch, in nats; what is minimised.
        contrastive: its contrastive part.
        distillation: its distillation part before weighting; 0 without a teacher.
        sparsity: its regulariser of weights for tokens before weighting; 0 without one.
        gradient_norm: L2 norm of the gradient over all weights and ranks, before clipping.
        learning_rate: of this step.
        nonfinite: what was not finite; the weights are unchanged then. None for a sound step.
        overflowed: the scaled gradient was too large for float16; the weights are unchanged, and the scale is halved.
        texts: representations of this rank's queries, then of its passages.
    """

    loss: float
    contrastive: float
    distillation: float
    sparsity: float
    gradient_norm: float
    learning_rate: float
    nonfinite: NonFinite | None
    overflowed: bool
    texts: Representation


def train_step(setup: Setup, progress: TrainingProgress, batch: TrainingBatch) -> StepResult:
    """Take one optimizer step on a batch.

    Encode the texts, score queries against the passages of all ranks, send the gradient of the loss back through the
    model (:func:`~biencoder.training.gradcache.accumulate_gradients` does these three), add up gradients over ranks,
    clip, update. In float16 the gradient is scaled on its way through the model.

    Args:
        setup: model, optimizer and objectives.
        progress: which step this is, and how much memory it may take. Memory that runs out changes the latter.
        batch: this rank's share of the global batch.

    Raises:
        TrainingError: memory runs out with one text at a time.
    """
    losses = accumulate_within_memory(setup, progress, batch)
    sum_gradients(setup.trained)
    setup.scaler.unscale_(setup.optimizer)
    norm = clip_gradients(setup.trained, setup.config.max_grad_norm)
    figures = torch.stack([losses.total, losses.contrastive, losses.distillation, losses.sparsity, norm])
    # In float32 and bf16, the step waits for the device here alone.
    loss, contrastive, distillation, sparsity, norm = figures.tolist()
    overflowed = _has_overflowed(setup, loss, norm)
    nonfinite = None if overflowed else find_nonfinite(setup, progress, losses, loss, norm)
    rate = _set_learning_rate(setup, progress.step)
    if nonfinite is None and not overflowed:
        setup.scaler.step(setup.optimizer)
    setup.scaler.update()
    setup.optimizer.zero_grad()
    return StepResult(loss, contrastive, distillation, sparsity, norm, rate, nonfinite, overflowed, losses.texts)


def _has_overflowed(setup: Setup, loss: float, norm: float) -> bool:
    """Whether the gradient is too large for float16 only because it is scaled; all ranks see the same numbers."""
    is_finite = math.isfinite(norm) or not math.isfinite(loss)
    return setup.scaler.is_enabled() and not is_finite and setup.scaler.get_scale() > LEAST_SCALE


def _set_learning_rate(setup: Setup, step: int) -> float:
    rate = learning_rate_at(
        step,
        peak=setup.highest_rate,
        total=setup.total_steps,
        warmup=setup.warmup_steps,
        schedule=setup.config.schedule,
    )
    set_learning_rate(setup.optimizer, rate)
    return rate
