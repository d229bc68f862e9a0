"""One vector a text: pooling, the linear layers after it, and length 1.

Shapes: T tokens in the row, N texts, H hidden size, D dimensions of a vector.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import normalize as unit_length

from biencoder.model.heads.projected import ProjectedHead
from biencoder.model.heads.projection import Projection
from biencoder.model.packing import PackedBatch
from biencoder.model.pooling import POOLED_TOKEN, POOLINGS
from biencoder.model.representations.dense import Dense


class DenseHead(ProjectedHead):
    """One vector a text: pooled, sent through linear layers, scaled to length 1 if asked, cut short if asked.

    Args:
        width: hidden size of the backbone.
        pooling: a name in :data:`~biencoder.model.pooling.POOLINGS`.
        normalize: scale each vector to length 1.
        layers: after the pooling, in order.
        dim: dimensions to keep; None for all.
    """

    def __init__(
        self, width: int, *, pooling: str, normalize: bool, layers: Sequence[Projection] = (), dim: int | None = None
    ) -> None:
        super().__init__(width, layers, dim)
        self.pooling = pooling
        self.normalize = normalize

    def forward(self, hidden_TD: Tensor, starts: Tensor, batch: PackedBatch) -> Dense:  # noqa: ARG002 - one signature
        """``[T, H]`` -> a vector for each text: ``[N, D]``."""
        vectors_ND = self.projected(POOLINGS[self.pooling](hidden_TD, starts))
        if self.normalize:
            vectors_ND = unit_length(vectors_ND, dim=-1)
        whole = Dense(vectors_ND.contiguous())
        return whole if self.dim == self.full_dim else whole.cut(self._dim, normalize=self.normalize)

    def used_tokens(self, starts: Tensor) -> Tensor | None:
        """The first or last token of each text where that is the pooling, else None."""
        return POOLED_TOKEN[self.pooling](starts) if self.pooling in POOLED_TOKEN else None

    def adopt(self, *, pooling: str, normalize: bool) -> "DenseHead":
        """The same layers, after another pooling."""
        return DenseHead(self.width, pooling=pooling, normalize=normalize, layers=self.projections, dim=self.dim)

    def followed_by(self, layer: Projection) -> "DenseHead":
        """The same head with one more layer, and all of its dimensions."""
        layers = [*self.projections, layer]
        return DenseHead(self.width, pooling=self.pooling, normalize=self.normalize, layers=layers)
