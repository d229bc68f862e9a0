"""The memory of a rank beside activations: weights, gradients, moments, and what is gathered of sharded weights."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from biencoder.device.choice import HALF
from biencoder.errors import UserError
from biencoder.model.adapting.freezing import find_blocks
from biencoder.model.encoder import Encoder

MOMENTS = 2  # of AdamW, for each weight that learns


class Weights(NamedTuple):
    """Bytes of some weights, and of those among them that learn."""

    all: int
    learning: int

    @classmethod
    def of(cls, parameters: Iterable[nn.Parameter]) -> "Weights":
        """Those of parameters, over all ranks."""
        parameters = list(parameters)
        return cls(sum(p.nbytes for p in parameters), sum(p.nbytes for p in parameters if p.requires_grad))


class StateBytes(NamedTuple):
    """Bytes on one rank.

    Attributes:
        weights: of the model.
        gradients: of the weights that learn.
        moments: of the same, two each.
        gathered: the weights that are whole at a time, and their gradients; 0 without sharding.
    """

    weights: int
    gradients: int
    moments: int
    gathered: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def bytes_of_a_rank(cut: Weights, whole: Weights, ranks: int, gathered: int) -> StateBytes:
    """What a rank holds of a model whose weights are cut over ranks.

    Args:
        cut: the weights that are cut.
        whole: those that each rank holds whole.
        ranks: over which weights are cut; 1 for no sharding.
        gathered: bytes of the largest layer and of all weights outside of layers, as they are gathered.
    """
    learning = -(-cut.learning // ranks) + whole.learning
    return StateBytes(
        weights=-(-cut.all // ranks) + whole.all,
        gradients=learning,
        moments=MOMENTS * learning,
        gathered=0 if ranks == 1 else 2 * gathered,
    )


def state_of(encoder: Encoder, ranks: int) -> StateBytes:
    """What each rank holds, or would hold, of a model that is sharded over so many ranks."""
    backbone = encoder.backbone
    half = HALF.get(encoder.precision or "")
    layers = [list(layer.parameters()) for layer in _layers(backbone)]
    largest = max((sum(p.numel() * (half or p.dtype).itemsize for p in layer) for layer in layers), default=0)
    cut = Weights.of(backbone.parameters())
    outside = cut.all - sum(Weights.of(layer).all for layer in layers)
    return bytes_of_a_rank(cut, Weights.of(encoder.head.parameters()), ranks, largest + outside)


def _layers(backbone: nn.Module) -> list[nn.Module]:
    try:
        return list(find_blocks(backbone)[1])
    except UserError:
        return []
