"""Pairs of texts with a score of how similar they are: an objective of its own kind, for data sets of such pairs.

Shapes: B queries, P passages (of this rank, or of all of them), G passages in the largest group, D dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from biencoder.training.objective import Labels, Losses, Objective


def similarity_error(cosines_B: Tensor, wanted_B: Tensor) -> Tensor:
    """Squared error of the cosine of two texts against their score (Reimers and Gurevych 2019, section 3, regression).

    Args:
        cosines_B: ``[B]`` float32.
        wanted_B: ``[B]`` scores from -1 to 1.

    Returns:
        ``[B]``, no unit.
    """
    return (cosines_B - wanted_B).square()


@dataclass(frozen=True)
class SimilarityObjective:
    """Takes the place of :class:`~biencoder.training.objective.Objective` where rows say how similar two texts are.

    Every pair is for itself: there are no negatives, so that neither batch size nor ranks change what a pair adds.
    """

    def __call__(self, queries_BD: Tensor, passages_PD: Tensor, labels: Labels) -> Losses:
        """Losses of pairs, in float32 also under autocast; ``labels.teacher[:, 0]`` is what each cosine should be."""
        assert labels.teacher is not None
        with torch.autocast(queries_BD.device.type, enabled=False):
            queries, passages = queries_BD.float(), passages_PD.float()
            cosines = cosine_similarity(queries, passages[labels.groups[:, 0]])
            error = similarity_error(cosines, labels.teacher[:, 0])
            return Losses(error, None, error, cosines[:, None])


AnyObjective = Objective | SimilarityObjective
