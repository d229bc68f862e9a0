"""A training run under way: what it is given, and how far it has come."""

import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import torch

from biencoder.config import TrainConfig
from biencoder.data.files.beir import Collection
from biencoder.data.plan.sampling import Sampler
from biencoder.data.table import ExampleTable
from biencoder.model.encoder import Encoder
from biencoder.objective.similarity import AnyObjective
from biencoder.retrieval.evaluate import Evaluation
from biencoder.training.batch import Batcher
from biencoder.training.sources.guide import Guide
from biencoder.training.state.checkpoint import checkpoints_in, newest_checkpoint
from biencoder.training.watch.learning import Watch

SHOWN_STEPS = 20


@dataclass
class Skipped:
    """Steps that were not taken because their numbers were not finite.

    Attributes:
        total: in the whole run.
        in_a_row: those since the last step that was taken.
    """

    total: int = 0
    in_a_row: int = 0


@dataclass
class Job:
    """A training run under way.

    Attributes:
        config: resolved; what it says is what happens.
        examples: the rows to train on, without mined negatives.
        encoder: the model being trained.
        optimizer: its AdamW.
        objectives: embeddings and labels to losses, for each data set.
        guide: a second model that masks false negatives, or None.
        sampler: the step to the rows of its global batch.
        batcher: those rows to this rank's tokens.
        collection: what is evaluated on.
        guards: by folder, data that are not trained on, on which the model is evaluated before and after.
        total_steps: optimizer steps of the whole run.
        keep_tokens: see :func:`~biencoder.training.gradcache.accumulate_gradients`.
        held_at_most: likewise.
        step: optimizer steps done.
        before: the evaluation of the model as it came.
        guards_before: likewise on each of the guards.
        best: the best evaluation since training began.
        best_step: when that was.
        recent: loss, queries and seconds of the last steps, whose means are shown.
        skipped: how many steps were.
        watch: on signs that the model does not learn.
    """

    config: TrainConfig
    examples: ExampleTable
    encoder: Encoder
    optimizer: torch.optim.AdamW
    objectives: list[AnyObjective]
    guide: Guide | None
    sampler: Sampler
    batcher: Batcher
    collection: Collection
    total_steps: int
    keep_tokens: int
    held_at_most: int
    guards: dict[str, Collection] = field(default_factory=dict)
    step: int = 0
    before: Evaluation | None = None
    guards_before: dict[str, Evaluation] = field(default_factory=dict)
    best: Evaluation | None = None
    best_step: int = 0
    recent: deque[tuple[float, int, float]] = field(default_factory=lambda: deque(maxlen=SHOWN_STEPS))
    skipped: Skipped = field(default_factory=Skipped)
    watch: Watch = field(default_factory=Watch)

    @property
    def folder(self) -> Path:
        """Where the model and its reports go."""
        return self.config.output_dir

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are."""
        return checkpoints_in(self.folder)

    @property
    def highest_rate(self) -> float:
        """The learning rate after warm-up."""
        assert self.config.learning_rate is not None
        return self.config.learning_rate

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return math.ceil(self.config.warmup_ratio * self.total_steps)

    @property
    def what_is_kept(self) -> str:
        """A sentence's worth of where a run that ends here can go on."""
        newest = newest_checkpoint(self.checkpoints) if self.checkpoints.is_dir() else None
        return "There is no checkpoint yet" if newest is None else f"The last checkpoint, {newest}, is good"
