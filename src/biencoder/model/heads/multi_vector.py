"""A vector for each token: linear layers, and length 1.

Shapes: T tokens in the row, N texts, L tokens of the longest, H hidden size, D dimensions of a vector.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as unit_length

from biencoder.model.heads.head import Head
from biencoder.model.heads.projection import Projection
from biencoder.model.packing import PackedBatch
from biencoder.model.representations.multi_vector import MultiVector


class MultiVectorHead(Head):
    """A vector for each token that is compared (Khattab and Zaharia 2020, section 3.2), of length 1.

    Args:
        width: hidden size of the backbone.
        layers: each token's hidden state goes through them, in order.
        dim: dimensions to keep; None for all.

    Attributes:
        full_dim: dimensions of a vector before it is cut.
    """

    def __init__(self, width: int, *, layers: Sequence[Projection] = (), dim: int | None = None) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(layers)
        self.full_dim = layers[-1].layer.outputs if layers else width
        self._dim = dim or self.full_dim

    def forward(self, hidden_TD: Tensor, starts: Tensor, batch: PackedBatch) -> MultiVector:
        """``[T, H]`` -> vectors for each text: ``[N, L, D]``."""
        vectors_TD = hidden_TD.float()
        for layer in self.layers:
            vectors_TD = layer(vectors_TD)
        vectors_TD = unit_length(vectors_TD[:, : self._dim], dim=-1) * batch.is_compared[:, None]
        texts, longest = len(batch.lengths), batch.packing.longest
        first_T = (torch.arange(texts, device=starts.device) * longest - starts[:-1]).repeat_interleave(
            starts.diff(), output_size=len(vectors_TD)
        )
        places_T = first_T + torch.arange(len(vectors_TD), device=starts.device)
        padded = vectors_TD.new_zeros(texts * longest, self._dim).index_copy(0, places_T, vectors_TD)
        return MultiVector(padded.view(texts, longest, self._dim))

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._dim

    @property
    def projections(self) -> list[Projection]:
        """The layers, in order."""
        return cast("list[Projection]", list(self.layers))
