"""Several representations of the same texts, as BGE-M3's three: one vector, a weight for each token, a vector for each.

Shapes: N texts, B queries, P passages, G passages in the largest group, D dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from torch import Tensor

from biencoder.model.representations.dense import Dense
from biencoder.model.representations.multi_vector import MultiVector
from biencoder.model.representations.representation import Places, Representation
from biencoder.model.representations.sparse import Sparse


@dataclass(frozen=True, eq=False)
class Combined(Representation):
    """The parts that heads make of the same texts; the similarity is the weighted sum of the parts' similarities.

    As in BGE-M3 (Chen et al. 2024, arXiv 2402.03216, section 3.2, "Hybrid Retrieval").

    Attributes:
        parts: two or more representations of the same N texts, no two of one kind, in the order of
            :data:`~biencoder.config.choices.HEADS`.
        weights: of each part's similarity in the sum.
    """

    parts: tuple[Representation, ...]
    weights: tuple[float, ...]

    def scores(self, passages: "Combined") -> Tensor:
        """The similarity of all queries to all passages: ``[B, P]``."""
        return self.summed(self.of_parts(passages, lambda mine, theirs: mine.scores(theirs)))

    def pair_scores(self, passages: "Combined") -> Tensor:
        """The similarity of the queries to the passages of the same number: ``[N]``."""
        return self.summed(self.of_parts(passages, lambda mine, theirs: mine.pair_scores(theirs)))

    def group_scores(self, passages: "Combined", groups_BG: Tensor) -> Tensor:
        """The similarity of each query to its own group: ``[B, G]``."""
        return self.summed(self.of_parts(passages, lambda mine, theirs: mine.group_scores(theirs, groups_BG)))

    def cosines(self, passages: "Combined") -> Tensor:
        """The weighted mean of the parts' cosines: ``[N]``."""
        return self.summed(self.of_parts(passages, lambda mine, theirs: mine.cosines(theirs))) / sum(self.weights)

    def cut(self, dim: int, *, normalize: bool) -> "Combined":
        """Not possible: the parts have different dimensions."""
        raise NotImplementedError("representations of several kinds cannot be cut to fewer dimensions")

    def of_parts(
        self, passages: "Combined", compare: Callable[[Representation, Representation], Tensor]
    ) -> list[Tensor]:
        """What a function makes of the queries and the passages of each part."""
        return [compare(mine, theirs) for mine, theirs in zip(self.parts, passages.parts, strict=True)]

    def summed(self, scores: Sequence[Tensor]) -> Tensor:
        """The weighted sum of the parts' scores."""
        return reduce(Tensor.add, (weight * each for weight, each in zip(self.weights, scores, strict=True)))

    @property
    def dense(self) -> Dense | None:
        """The part with one vector a text, if there is one."""
        return next((part for part in self.parts if isinstance(part, Dense)), None)

    @property
    def sparse(self) -> Sparse | None:
        """The part with a weight for each token, if there is one."""
        return next((part for part in self.parts if isinstance(part, Sparse)), None)

    @property
    def multi(self) -> MultiVector | None:
        """The part with a vector for each token, if there is one."""
        return next((part for part in self.parts if isinstance(part, MultiVector)), None)

    @property
    def places(self) -> Places:
        """Those of all parts, one after another."""
        return tuple(places for part in self.parts for places in part.places)

    def in_places(self, places: Places) -> "Combined":
        """The same texts in so many places each."""
        parts, left = [], places
        for part in self.parts:
            own = len(part.places)
            parts.append(part.in_places(left[:own]))
            left = left[own:]
        return replace(self, parts=tuple(parts))

    @property
    def vectors(self) -> Tensor:
        """The vectors of the first part, which are near where texts are: ``[N, D]``."""
        return self.parts[0].vectors

    @property
    def tensors(self) -> list[Tensor]:
        """Those of all parts, one after another."""
        return [tensor for part in self.parts for tensor in part.tensors]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Combined":
        """Other tensors in the place of these."""
        parts, left = [], list(tensors)
        for part in self.parts:
            own = len(part.tensors)
            parts.append(part.with_tensors(left[:own]))
            left = left[own:]
        return replace(self, parts=tuple(parts))
