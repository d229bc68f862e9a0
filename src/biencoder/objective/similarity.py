"""An objective for pairs of texts with a score that says how similar they are.

Shapes: B queries, P passages (of this rank, or of all of them).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from biencoder.model.representations.representation import Kind
from biencoder.objective.labels import Labels
from biencoder.objective.objective import Losses


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
    """The squared error of each pair's cosine; rows of such data have no negatives.

    What a pair adds to the loss depends neither on the batch size nor on the number of ranks.

    Attributes:
        dims: the mean of the errors of vectors cut to each of these dimensions; empty for all dimensions alone.
        two_way: this objective has no second way.
    """

    dims: tuple[int, ...] = ()
    two_way: ClassVar[bool] = False

    def __call__(
        self,
        queries: Kind,
        passages: Kind,
        labels: Labels,
        all_queries: Kind | None = None,  # noqa: ARG002 - one signature for all objectives
    ) -> Losses:
        """Losses of pairs, in float32 also under autocast; ``labels.teacher[:, 0]`` is what each cosine should be."""
        assert labels.teacher is not None
        with torch.autocast(queries.device.type, enabled=False):
            sides = [queries.in_float32(), passages.in_float32()[labels.groups[:, 0]]]
            pairs = [[side.cut(dim, normalize=False) for side in sides] for dim in self.dims] or [sides]
            cosines = [query.cosines(passage) for query, passage in pairs]
            errors = [similarity_error(each, labels.teacher[:, 0]) for each in cosines]
            error = torch.stack(errors).mean(dim=0)
            return Losses(error, None, error, cosines[0][:, None])
