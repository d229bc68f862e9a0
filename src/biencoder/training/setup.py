"""What a training run is given: nothing of it changes while the run is under way."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from biencoder.config import TrainConfig
from biencoder.data.files.beir import Collection
from biencoder.data.table import ExampleTable
from biencoder.distributed import rank
from biencoder.model.encoder import Encoder
from biencoder.model.parallel.sharded import is_sharded
from biencoder.objective.objective import Objective
from biencoder.objective.sparsity import Sparsity
from biencoder.training.guide import Guide
from biencoder.training.state.checkpoint import checkpoints_in, newest_checkpoint

HELD_OUT_QUERIES = 300  # at most
PARTS = 5  # of a cross-validation; halves would be faster, but models of half the rows gain too little


@dataclass(frozen=True, eq=False)
class Setup:
    """The set-up of a training run.

    Attributes:
        config: resolved; what it says is what happens.
        examples: the rows to train on, without mined negatives.
        encoder: the model that learns; its weights are all that changes here.
        base_head: copies of the weights of its head before training.
        optimizer: its AdamW, with the moments.
        scaler: scales gradients that float16 would not hold; off in other precisions.
        objectives: representations and labels to losses, one for each data set.
        guide: a second model that masks false negatives, or None.
        collection: what the model is evaluated on.
        guards: data that are not trained on, by name; the model is evaluated on them before and after.
        total_steps: optimizer steps of the whole run.
        sparsity: keeps weights for tokens sparse, with its full weight; None if that is not asked.
    """

    config: TrainConfig
    examples: ExampleTable
    encoder: Encoder
    base_head: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    scaler: GradScaler
    objectives: list[Objective]
    guide: Guide | None
    collection: Collection
    total_steps: int
    guards: dict[str, Collection] = field(default_factory=dict)
    sparsity: Sparsity | None = None

    @property
    def folder(self) -> Path:
        """Where the model and its reports go."""
        return self.config.output_dir

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints are."""
        return checkpoints_in(self.folder)

    @property
    def is_sharded(self) -> bool:
        """Whether a pass through the model, or a file of its weights, takes all ranks."""
        return is_sharded(self.encoder.backbone)

    @property
    def takes_part(self) -> bool:
        """Whether this rank evaluates and saves: the first one, or all of them with their rows of sharded weights."""
        return rank() == 0 or self.is_sharded

    @property
    def highest_rate(self) -> float:
        """The learning rate after warm-up."""
        assert self.config.learning_rate is not None
        return self.config.learning_rate

    @property
    def may_look_again(self) -> bool:
        """Whether the run may train again on parts of its data: a tenth of the queries is few, and nobody said no.

        A model that continues a run may have seen the queries of all parts.
        """
        config = self.config
        is_new = config.eval_data is None and config.continue_from is None
        return config.cross_validate and is_new and len(self.collection.query_ids) < HELD_OUT_QUERIES

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return math.ceil(self.config.warmup_ratio * self.total_steps)

    def sparsity_at(self, step: int) -> Sparsity | None:
        """What keeps weights for tokens sparse in step 0, 1, … ``total_steps - 1``."""
        return None if self.sparsity is None else self.sparsity.at(step / self.total_steps)

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """The weights that learn, including the head's."""
        return [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]

    @property
    def newest_checkpoint_said(self) -> str:
        """Where a run that ends here can go on, in a sentence without its full stop."""
        newest = newest_checkpoint(self.checkpoints) if self.checkpoints.is_dir() else None
        return "There is no checkpoint yet" if newest is None else f"The last checkpoint, {newest}, is good"
