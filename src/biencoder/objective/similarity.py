"""An objective for pairs of texts with a score that says how similar they are.

Shapes: B queries, P passages (of this rank, or of all of them).
"""

from dataclasses import dataclass

from torch import Tensor

from biencoder.model.representations.representation import Kind
from biencoder.objective.labels import Labels
from biencoder.objective.objective import Losses, Objective


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
class SimilarityObjective(Objective):
    """The squared error of each pair's cosine; rows of such data have no negatives.

    What a pair adds to the loss depends neither on the batch size nor on the number of ranks.

    Attributes:
        dims: the mean of the errors of vectors cut to each of these dimensions; empty for all dimensions alone.
    """

    dims: tuple[int, ...] = ()

    def losses(self, queries: Kind, passages: Kind, all_queries: Kind, labels: Labels) -> Losses:  # noqa: ARG002
        """Losses of pairs; ``labels.teacher[:, 0]`` is what each cosine should be."""
        assert labels.teacher is not None
        cosines = queries.cosines(passages[labels.groups[:, 0]])
        error = similarity_error(cosines, labels.teacher[:, 0])
        return Losses(error, None, error, cosines[:, None])
