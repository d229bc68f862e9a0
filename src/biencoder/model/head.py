"""Heads: from the hidden states of a packed row to a representation of each text.

Shapes: T tokens in the row, N texts, D hidden size. ``starts`` ``[N + 1]`` is where each text begins, and the row's
end.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn.functional import normalize as unit_length

from biencoder.model.pooling import POOLED_TOKEN, POOLINGS
from biencoder.model.representation import Dense, Representation


class Head(nn.Module, ABC):
    """What stands on a backbone. Its parameters train, and are saved in checkpoints, with the backbone's."""

    @abstractmethod
    def forward(self, hidden_TD: Tensor, starts: Tensor) -> Representation:
        """The representation of each of the N texts, in float32.

        Autocast is off here. Hidden states may come in half precision; what training compares must not.
        """

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimensions of :attr:`~biencoder.model.representation.Representation.vectors`."""

    def used_tokens(self, starts: Tensor) -> Tensor | None:  # noqa: ARG002 - one signature for all heads
        """The one token of each text that the head looks at, ``[N]``; None when it looks at all of them."""
        return None


class DenseHead(Head):
    """One vector a text: pooled, scaled to length 1 if asked, cut to the first dimensions if asked.

    Args:
        width: hidden size of the backbone.
        pooling: a name in :data:`~biencoder.model.pooling.POOLINGS`.
        normalize: scale each vector to length 1.
        dim: dimensions to keep; None for all.
    """

    def __init__(self, width: int, *, pooling: str, normalize: bool, dim: int | None = None) -> None:
        super().__init__()
        self.width = width
        self.pooling = pooling
        self.normalize = normalize
        self._dim = width if dim is None else dim

    def forward(self, hidden_TD: Tensor, starts: Tensor) -> Dense:
        """``[T, D]`` -> a vector for each text: ``[N, dim]``."""
        vectors_ND = POOLINGS[self.pooling](hidden_TD, starts).float()
        if self.normalize:
            vectors_ND = unit_length(vectors_ND, dim=-1)
        whole = Dense(vectors_ND.contiguous())
        return whole if self.dim == self.width else whole.cut(self.dim, normalize=self.normalize)

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._dim

    def used_tokens(self, starts: Tensor) -> Tensor | None:
        """The first or last token of each text where that is the pooling, else None."""
        return POOLED_TOKEN[self.pooling](starts) if self.pooling in POOLED_TOKEN else None
