"""Heads: from the hidden states of a packed row to a representation of each text.

Shapes: T tokens in the row, N texts, D hidden size. ``starts`` ``[N + 1]`` is where each text begins, and the row's
end.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from biencoder.model.packing import PackedBatch
from biencoder.model.representations.representation import Representation


class Head(nn.Module, ABC):
    """What stands on a backbone. Its parameters train, and are saved in checkpoints, with the backbone's."""

    @abstractmethod
    def forward(self, hidden_TD: Tensor, starts: Tensor, batch: PackedBatch) -> Representation:
        """The representation of each of the N texts of ``batch``, in float32.

        Autocast is off here. Hidden states may come in half precision; what training compares must not.
        """

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimensions of :attr:`~biencoder.model.representations.representation.Representation.vectors`."""

    def adopt(self, *, pooling: str, normalize: bool) -> "Head":  # noqa: ARG002 - one signature for all heads
        """The same head with another pooling, if it pools anything."""
        return self

    def layer_states(self) -> list[Mapping[str, Tensor]]:
        """The weights of each linear layer, by name, in the order in which a folder has them."""
        return []

    def whole(self, backbone: PreTrainedModel) -> PreTrainedModel:
        """The transformers model that holds the weights of the backbone and of this head; usually the backbone."""
        return backbone

    def used_tokens(self, starts: Tensor) -> Tensor | None:  # noqa: ARG002 - one signature for all heads
        """The one token of each text that the head looks at, ``[N]``; None when it looks at all of them."""
        return None
