"""A vector for each token of a text: late interaction.

Shapes: N texts, B queries, P passages, G passages in the largest group, L tokens of the longest text, D dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_length
from torch.nn.functional import pad

from biencoder.model.representations.max_sim import best_matches, max_sim, max_sim_of_pairs
from biencoder.model.representations.representation import Places, Representation


@dataclass(frozen=True, eq=False)
class MultiVector(Representation):
    """A vector for each token; the similarity is the mean, over the query's vectors, of the best match in the passage.

    It is ColBERT's MaxSim (Khattab and Zaharia 2020) divided by the number of the query's vectors. For one query, both
    rank passages alike. The mean is a cosine again, so temperatures and margins mean the same for short and long
    queries, and queries of different lengths can be told apart for a passage.

    Attributes:
        tokens_NLD: ``[N, L, D]`` float32; zeros where a text has no vector.
    """

    tokens_NLD: Tensor

    def scores(self, passages: "MultiVector") -> Tensor:
        """The similarity of all queries to all passages: ``[B, P]``."""
        compare = max_sim if torch.is_grad_enabled() else best_matches
        return compare(self._shares, passages.tokens_NLD)

    def pair_scores(self, passages: "MultiVector") -> Tensor:
        """The similarity of the queries to the passages of the same number: ``[N]``."""
        return max_sim_of_pairs(self._shares, passages.tokens_NLD)

    def group_scores(self, passages: "MultiVector", groups_BG: Tensor) -> Tensor:
        """The similarity of each query to its own group: ``[B, G]``."""
        return self.scores(passages).gather(1, groups_BG)

    def cosines(self, passages: "MultiVector") -> Tensor:
        """The same as :meth:`pair_scores`, of vectors of length 1: ``[N]``."""
        queries, others = (unit_length(side.tokens_NLD, dim=2) for side in (self, passages))
        return MultiVector(queries).pair_scores(MultiVector(others))

    def cut(self, dim: int, *, normalize: bool) -> "MultiVector":
        """The first ``dim`` dimensions of each vector, scaled to length 1 again if asked."""
        short = self.tokens_NLD[:, :, :dim]
        return MultiVector(unit_length(short, dim=2) if normalize else short)

    @property
    def places(self) -> Places:
        """L, which is larger for a batch with longer texts."""
        return (self.tokens_NLD.shape[1],)

    def in_places(self, places: Places) -> "MultiVector":
        """The same texts in so many places each; those behind the longest text hold zeros."""
        return MultiVector(pad(self.tokens_NLD, (0, 0, 0, places[0] - self.tokens_NLD.shape[1])))

    @property
    def vectors(self) -> Tensor:
        """The mean of each text's vectors, scaled to length 1: ``[N, D]``."""
        return unit_length(self.tokens_NLD.sum(dim=1), dim=1)

    @property
    def present(self) -> Tensor:
        """Where a text has a vector: bool ``[N, L]``."""
        return self.tokens_NLD.any(dim=2)

    @property
    def _shares(self) -> Tensor:
        """Each vector divided by the number of its text's: ``[N, L, D]``; MaxSim of these is the mean."""
        return self.tokens_NLD / self.present.sum(dim=1).clamp(min=1)[:, None, None]
