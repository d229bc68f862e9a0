"""Ways to forget less that biencoder does not offer; `benchmarks.front` measures them against those that it offers.

python -m benchmarks.milder "lower rates below" train --model … --train-data … --output-dir …

Each is a change of the training step. The command behind its name is biencoder's own.
"""

import copy
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from biencoder import cli
from biencoder.model.encoder import Encoder
from biencoder.model.representations.dense import Dense
from biencoder.training import gradcache
from biencoder.training.batch import TrainingBatch
from biencoder.training.optimizer import TIMES
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.steps import loop
from biencoder.training.steps.train_step import StepResult, train_step

DECAY = 0.8  # of the learning rate from one layer to the layer below
PULL = 80.0  # learning rates' share of the way back to the base in each step
MEMORY = 0.9  # what the average keeps of itself in each step
HOLD = 10.0  # weight of the squared change of similarities

Kept = TypeVar("Kept")
Step = Callable[[Setup, TrainingProgress, TrainingBatch], StepResult]


def lower_rates_below(setup: Setup, progress: TrainingProgress, batch: TrainingBatch) -> StepResult:
    """Each layer learns at :data:`DECAY` times the rate of the layer above it (Howard and Ruder 2018, section 3.2)."""
    if progress.step == 0:
        names = {parameter: name for name, parameter in setup.encoder.named_parameters()}
        layers = setup.encoder.backbone.config.num_hidden_layers
        groups = []
        for group in setup.optimizer.param_groups:
            for parameter in group["params"]:
                found = re.search(r"\.layer\.(\d+)\.", names[parameter])
                below = layers - (int(found[1]) + 1 if found else 0)
                groups.append({**group, "params": [parameter], TIMES: DECAY**below})
        setup.optimizer.param_groups[:] = groups
    return train_step(setup, progress, batch)


def pulled_to_the_base(setup: Setup, progress: TrainingProgress, batch: TrainingBatch) -> StepResult:
    """After each step, weights go a part of the way back (L2-SP, Li et al. 2018, decoupled from Adam's moments)."""
    base = _at_the_start(progress, lambda: _weights(setup))
    taken = train_step(setup, progress, batch)
    for parameter, start in zip(setup.trained, base, strict=True):
        parameter.data.lerp_(start, taken.learning_rate * PULL)
    return taken


def averaged_along_the_run(setup: Setup, progress: TrainingProgress, batch: TrainingBatch) -> StepResult:
    """The model at the end is an exponential average of all steps' weights (Polyak and Juditsky 1992)."""
    average = _at_the_start(progress, lambda: _weights(setup))
    taken = train_step(setup, progress, batch)
    for mean, parameter in zip(average, setup.trained, strict=True):
        mean.lerp_(parameter.data, 1 - MEMORY)
        if progress.step == setup.total_steps - 1:
            parameter.data.copy_(mean)
    return taken


def similarities_held(setup: Setup, progress: TrainingProgress, batch: TrainingBatch) -> StepResult:
    """The loss also has :data:`HOLD` times the squared change of each similarity of the batch from the base's."""
    base = _at_the_start(progress, lambda: copy.deepcopy(setup.encoder).eval())
    wanted = _similarities(_encoded(base, batch), batch.queries)
    original = gradcache._cache_gradient

    def with_similarities(texts: Dense, *rest: object) -> tuple[Dense, gradcache.StepLosses]:
        gradient, losses = original(texts, *rest)  # type: ignore[arg-type]
        leaves = texts.as_leaves()
        (HOLD * (_similarities(leaves, batch.queries) - wanted).square().mean()).backward()
        return gradient.plus(leaves.gradient()), losses  # type: ignore[return-value]

    gradcache._cache_gradient = with_similarities  # type: ignore[assignment]
    try:
        return train_step(setup, progress, batch)
    finally:
        gradcache._cache_gradient = original


METHODS: dict[str, Step] = {
    "lower rates below": lower_rates_below,
    "pulled to the base": pulled_to_the_base,
    "averaged along the run": averaged_along_the_run,
    "similarities held": similarities_held,
}


def _similarities(texts: Dense, queries: int) -> Tensor:
    return texts[:queries].scores(texts[queries:])


def _encoded(base: Encoder, batch: TrainingBatch) -> Dense:
    with torch.no_grad():
        encoded = gradcache.encode_chunks(base, batch, 0, (0, 0))
    found = gradcache._in_order(encoded, base)
    assert isinstance(found, Dense)
    return found


_kept: list[Any] = []


def _at_the_start(progress: TrainingProgress, make: Callable[[], Kept]) -> Kept:
    """What ``make`` made in the first step."""
    if progress.step == 0:
        _kept[:] = [make()]
    kept: Kept = _kept[0]
    return kept


def _weights(setup: Setup) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in setup.trained]


if __name__ == "__main__":
    loop.train_step = METHODS[sys.argv[1]]  # type: ignore[assignment, attr-defined]
    sys.exit(cli.main(sys.argv[2:]))
