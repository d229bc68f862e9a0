"""A regulariser that keeps sparse representations sparse, and the schedule of its weight.

It is added to the loss of any objective, once a step. It knows representations and no model.

Shapes: Q queries and P passages of the batch (of this rank, or of all of them), U distinct tokens of some texts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from biencoder.config.choices import FLOPS, L1
from biencoder.model.representations.combined import Combined
from biencoder.model.representations.representation import Representation
from biencoder.model.representations.sparse import Sparse

RISE = 1 / 3  # share of the run in which the weight rises


def flops(means_U: Tensor) -> Tensor:
    """The sum of the squared mean weights (Paria et al. 2020, arXiv 2004.05665, eq. 4).

    Its gradient is largest for tokens that many texts have. Their lists in an inverted index are long, which makes
    search slow.

    Args:
        means_U: ``[U]`` mean weight of each token that any text has, 0 or more.
    """
    return means_U.square().sum()


def l1(means_U: Tensor) -> Tensor:
    """The mean over the texts of the sum of their weights, which is the sum of the mean weights.

    Args:
        means_U: ``[U]`` mean weight of each token that any text has, 0 or more.
    """
    return means_U.sum()


# What is kept small, by the name that is typed.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {FLOPS: flops, L1: l1}


@dataclass(frozen=True)
class Sparsity:
    """A norm of the mean weights of tokens: that of the queries plus that of the passages.

    Both are means over the texts that ranks share. If ranks share no negatives, they are means over a rank's own texts,
    and ranks count by their queries.

    Attributes:
        weight: factor on it in the loss.
        norm: its name in :data:`NORMS`.
    """

    weight: float
    norm: str = FLOPS

    def __call__(self, queries: Representation, passages: Representation) -> Tensor:
        """The norm before weighting: a scalar in float32.

        Args:
            queries: all Q of them, with weights for tokens, alone or beside other kinds.
            passages: all P of them.
        """
        norms = [NORMS[self.norm](_weights(side).mean_weights()) for side in (queries, passages)]
        return torch.stack(norms).sum()

    def at(self, progress: float) -> "Sparsity":
        """The same with its weight of that moment: a quadratic rise from 0, then its full weight.

        The schedule is SPLADE's (Formal et al. 2021, arXiv 2107.05720, section 4).

        Args:
            progress: share of the run that is done, 0 to 1.
        """
        return replace(self, weight=self.weight * min(1.0, progress / RISE) ** 2)


def _weights(texts: Representation) -> Sparse:
    """The weights for tokens in some texts, in float32."""
    part = texts.sparse if isinstance(texts, Combined) else texts
    assert isinstance(part, Sparse)
    return part.in_float32()
