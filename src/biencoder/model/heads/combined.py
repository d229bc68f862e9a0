"""Several heads on one pass through the backbone, as BGE-M3 has three.

Shapes: T tokens in the row, N texts, H hidden size.
"""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from biencoder.model.heads.head import Head
from biencoder.model.packing import PackedBatch
from biencoder.model.representations.combined import Combined


class CombinedHead(Head):
    """Heads side by side; each sees the same hidden states.

    Args:
        parts: the heads, by the names of their kinds.
        weights: of each part's similarity in the sum of all.
    """

    def __init__(self, parts: Mapping[str, Head], weights: Sequence[float]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.weights = tuple(weights)

    def forward(self, hidden_TD: Tensor, starts: Tensor, batch: PackedBatch) -> Combined:
        """``[T, H]`` -> what each head makes of the N texts."""
        made = tuple(head(hidden_TD, starts, batch) for head in self.heads.values())
        return Combined(made, self.weights)

    def adopt(self, *, pooling: str, normalize: bool) -> "CombinedHead":
        """The same heads, of which one pools in another way."""
        parts = {kind: head.adopt(pooling=pooling, normalize=normalize) for kind, head in self.heads.items()}
        return CombinedHead(parts, self.weights)

    def layer_states(self) -> list[Mapping[str, Tensor]]:
        """Of all heads, in order."""
        return [state for head in self.heads.values() for state in head.layer_states()]

    @property
    def heads(self) -> dict[str, Head]:
        """The heads, by the names of their kinds."""
        return cast("dict[str, Head]", dict(self.parts.items()))

    @property
    def dim(self) -> int:
        """Dimensions of the vectors of the first head."""
        return next(iter(self.heads.values())).dim
