"""Pairs of texts with a score of how similar they are: an objective of its own kind, for data sets of such pairs.

Shapes: B queries, P passages (of this rank, or of all of them), G passages in the largest group, D dimensions.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from biencoder.objective.objective import Labels, Losses, Objective


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
    """Takes the place of :class:`~biencoder.objective.objective.Objective` where rows say how similar two texts are.

    Every pair is for itself: there are no negatives, so that neither batch size nor ranks change what a pair adds.

    Attributes:
        dims: the mean of the errors of vectors cut to each of these dimensions; empty for all dimensions alone.
        two_way: it has no second way.
    """

    dims: tuple[int, ...] = ()
    two_way: ClassVar[bool] = False

    def __call__(
        self,
        queries_BD: Tensor,
        passages_PD: Tensor,
        labels: Labels,
        everyone_QD: Tensor | None = None,  # noqa: ARG002
    ) -> Losses:
        """Losses of pairs, in float32 also under autocast; ``labels.teacher[:, 0]`` is what each cosine should be.

        ``everyone_QD``, the queries of the whole batch, has no part in it.
        """
        assert labels.teacher is not None
        with torch.autocast(queries_BD.device.type, enabled=False):
            queries, passages = queries_BD.float(), passages_PD.float()[labels.groups[:, 0]]
            dims = self.dims or (queries.shape[1],)
            cosines = [cosine_similarity(queries[:, :dim], passages[:, :dim]) for dim in dims]
            errors = [similarity_error(each, labels.teacher[:, 0]) for each in cosines]
            error = torch.stack(errors).mean(dim=0)
            return Losses(error, None, error, cosines[0][:, None])


AnyObjective = Objective | SimilarityObjective
