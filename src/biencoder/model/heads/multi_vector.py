"""A vector for each token: linear layers, and length 1.

Shapes: T tokens in the row, N texts, L tokens of the longest, H hidden size, D dimensions of a vector.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_length

from biencoder.model.heads.projected import ProjectedHead
from biencoder.model.heads.projection import Projection
from biencoder.model.packing import PackedBatch
from biencoder.model.representations.multi_vector import MultiVector


class MultiVectorHead(ProjectedHead):
    """A vector for each token that is compared (Khattab and Zaharia 2020, section 3.2), of length 1.

    Args:
        width: hidden size of the backbone.
        layers: each token's hidden state goes through them, in order.
        dim: dimensions to keep; None for all.
        skips_first: the first token of a text, which stands for the whole text, has no vector (BGE-M3).
    """

    def __init__(
        self,
        width: int,
        *,
        layers: Sequence[Projection] = (),
        dim: int | None = None,
        skips_first: bool = False,
    ) -> None:
        super().__init__(width, layers, dim)
        self.skips_first = skips_first

    def forward(self, hidden_TD: Tensor, starts: Tensor, batch: PackedBatch) -> MultiVector:
        """``[T, H]`` -> vectors for each text: ``[N, L, D]``."""
        vectors_TD = self.projected(hidden_TD)
        is_compared_T = batch.is_compared
        if self.skips_first:
            is_compared_T = is_compared_T.index_fill(0, starts[:-1].long(), value=False)
        vectors_TD = unit_length(vectors_TD[:, : self._dim], dim=-1) * is_compared_T[:, None]
        texts, longest = len(batch.lengths), batch.packing.longest
        first_T = (torch.arange(texts, device=starts.device) * longest - starts[:-1]).repeat_interleave(
            starts.diff(), output_size=len(vectors_TD)
        )
        places_T = first_T + torch.arange(len(vectors_TD), device=starts.device)
        padded = vectors_TD.new_zeros(texts * longest, self._dim).index_copy(0, places_T, vectors_TD)
        return MultiVector(padded.view(texts, longest, self._dim))
