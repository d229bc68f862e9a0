"""What heads have in common that send vectors through linear layers."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from biencoder.model.heads.head import Head
from biencoder.model.heads.projection import Projection


class ProjectedHead(Head):
    """Linear layers, and vectors that may be cut short after them.

    Args:
        width: hidden size of the backbone.
        layers: in order.
        dim: dimensions to keep; None for all.

    Attributes:
        full_dim: dimensions of a vector before it is cut.
    """

    def __init__(self, width: int, layers: Sequence[Projection], dim: int | None) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(layers)
        self.full_dim = layers[-1].layer.outputs if layers else width
        self._dim = dim or self.full_dim

    def projected(self, vectors: Tensor) -> Tensor:
        """``[N, H]`` -> ``[N, full_dim]`` float32: what the layers make of vectors."""
        vectors = vectors.float()
        for layer in self.layers:
            vectors = layer(vectors)
        return vectors

    def layer_states(self) -> list[Mapping[str, Tensor]]:
        """Of the layers, in order."""
        return [layer.state_dict() for layer in self.projections]

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._dim

    @property
    def projections(self) -> list[Projection]:
        """The layers, in order."""
        return cast("list[Projection]", list(self.layers))
