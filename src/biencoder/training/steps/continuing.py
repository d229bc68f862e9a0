"""A run that goes on from another, finished one: with other data, more steps, or another learning rate."""

from pathlib import Path

from torch import Tensor

from biencoder.model.encoder import Encoder
from biencoder.training.optimizer import restore_optimizer
from biencoder.training.setup import Setup
from biencoder.training.state.checkpoint import (
    checkpoints_in,
    load_best,
    load_checkpoint,
    newest_checkpoint,
    restore_state,
    trained_state,
)

SAVED_ALONE = "from its saved weights alone"


def take_over(setup: Setup, run: Path) -> str:
    """Take over what the checkpoints of another run hold, as far as it fits the weights that learn here.

    A saved model may be an average with its base. The checkpoints have its best tuned weights, and AdamW's moments.

    Args:
        setup: of the new run; its encoder is the saved model of the other one.
        run: the folder of the other run.

    Returns:
        What was taken, for people: the end of a sentence.
    """
    newest = newest_checkpoint(checkpoints_in(run)) if checkpoints_in(run).is_dir() else None
    if newest is None:
        return f"{SAVED_ALONE}, because it has no checkpoint"
    checkpoint = load_checkpoint(newest)
    best = load_best(newest.parent, checkpoint.state["best_step"])
    if _shapes(best) != _shapes(trained_state(setup.encoder)):
        return f"{SAVED_ALONE}, because it trained other weights than this run"
    restore_state(setup.encoder, best)
    if not _fit(checkpoint.optimizer, setup.encoder):
        return "from its best weights alone, because its optimizer's state does not fit"
    restore_optimizer(setup.encoder, setup.optimizer, checkpoint.optimizer)
    return "from its best weights and the state of its optimizer"


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _fit(moments: dict[str, Tensor], encoder: Encoder) -> bool:
    """Whether there is a state for every weight that learns, and for no other."""
    learning = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    return {name.rsplit("/", 1)[0] for name in moments} == learning
