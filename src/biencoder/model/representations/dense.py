"""One vector a text.

Shapes: N texts, B queries, P passages, G passages in the largest group, D dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.functional import normalize as unit_length

from biencoder.model.representations.inner_products import inner_products
from biencoder.model.representations.representation import Representation


@dataclass(frozen=True, eq=False)
class Dense(Representation):
    """One vector a text; the inner product is the similarity.

    Attributes:
        vectors_ND: ``[N, D]`` float32.
    """

    vectors_ND: Tensor

    def scores(self, passages: "Dense") -> Tensor:
        """Inner products of all queries with all passages: ``[B, P]``."""
        return inner_products(self.vectors_ND, passages.vectors_ND)

    def pair_scores(self, passages: "Dense") -> Tensor:
        """Inner products of the queries with the passages of the same number: ``[N]``."""
        return (self.vectors_ND * passages.vectors_ND).sum(dim=1)

    def group_scores(self, passages: "Dense", groups_BG: Tensor) -> Tensor:
        """Inner products of each query with its own group: ``[B, G]``."""
        return torch.einsum("bd,bgd->bg", self.vectors_ND, passages.vectors_ND[groups_BG])

    def cosines(self, passages: "Dense") -> Tensor:
        """Cosines of the queries with the passages of the same number: ``[N]``."""
        return cosine_similarity(self.vectors_ND, passages.vectors_ND)

    def cut(self, dim: int, *, normalize: bool) -> "Dense":
        """The first ``dim`` dimensions, scaled to length 1 again if asked (Kusupati et al. 2022, section 3)."""
        short = self.vectors_ND[:, :dim]
        return Dense(unit_length(short, dim=-1) if normalize else short)

    @property
    def vectors(self) -> Tensor:
        """The vectors themselves: ``[N, D]``."""
        return self.vectors_ND
