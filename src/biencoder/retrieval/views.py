"""How one pass over a collection can rank its documents: by all that a model makes of a text, or by parts of that.

Shapes: Q queries, B documents in a block.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from typing import Protocol

import numpy as np

from biencoder.model.parallel.sharing import share_out
from biencoder.model.representations.combined_rows import CombinedVectors
from biencoder.model.representations.ragged import Vectors
from biencoder.retrieval.search import extend, extend_by_scores, in_parts, on
from biencoder.retrieval.text_encoder import TextEncoder

Best = tuple[np.ndarray, np.ndarray]  # scores and indices, best first


class Views(Protocol):
    """Several rankings for the same queries."""

    @property
    def names(self) -> list[str]:
        """Of each ranking but the first, which is by everything."""

    def extend(self, best: Sequence[Best], documents: Vectors, offset: int, k: int) -> list[Best]:
        """The best ``k`` of each ranking, of earlier results and one more block, see :func:`~.search.extend`."""


def views_of(encoder: TextEncoder, queries: Vectors, dims: Sequence[int]) -> Views:
    """The rankings by parts of what a model makes of a text.

    Args:
        encoder: the model.
        queries: what it makes of them.
        dims: to which vectors are cut; empty for a model that has several heads.
    """
    return _ByHeads(encoder, queries) if isinstance(queries, CombinedVectors) else _ByDims(encoder, queries, dims)


class _ByDims:
    """By whole vectors, and by their first dimensions."""

    def __init__(self, encoder: TextEncoder, queries: Vectors, dims: Sequence[int]) -> None:
        self.names = [f"{dim} dimensions" for dim in dims]
        self._encoder = encoder
        self._queries = [(dim, encoder.cut(queries, dim)) for dim in (encoder.dim, *dims)]

    def extend(self, best: Sequence[Best], documents: Vectors, offset: int, k: int) -> list[Best]:
        """One search for each number of dimensions."""
        encoder = self._encoder
        return [
            extend(found, queries, on(encoder.device, encoder.cut(documents, dim)), offset, k)
            for found, (dim, queries) in zip(best, self._queries, strict=True)
        ]


class _ByHeads:
    """By the sum of several heads' similarities, by each head alone, and by the sums of some."""

    def __init__(self, encoder: TextEncoder, queries: CombinedVectors) -> None:
        heads = encoder.kind.split(",")
        sizes = range(1, len(heads))
        some = [chosen for size in sizes for chosen in combinations(range(len(heads)), size)]
        self.names = [" + ".join(heads[place] for place in chosen) for chosen in some]
        self._chosen = [tuple(range(len(heads))), *some]
        self._device = encoder.device
        self._queries = queries

    def extend(self, best: Sequence[Best], documents: Vectors, offset: int, k: int) -> list[Best]:
        """Each head compares once; its similarities serve all sums that it is in."""
        assert isinstance(documents, CombinedVectors)
        of_heads, weights = self._scores(documents), self._queries.layout.weights
        weighted = [weight * scores for weight, scores in zip(weights, of_heads, strict=True)]
        sums = [reduce(np.add, [weighted[place] for place in chosen]) for chosen in self._chosen]
        return [extend_by_scores(found, scores, offset, k) for found, scores in zip(best, sums, strict=True)]

    def _scores(self, documents: CombinedVectors) -> list[np.ndarray]:
        """The similarities by each head: ``[Q, B]``."""
        import torch

        block, parts = documents.padded(self._device), in_parts(self._queries)

        def of_part(queries: Vectors) -> list[np.ndarray]:
            assert isinstance(queries, CombinedVectors)
            with torch.no_grad():
                of_heads = queries.padded(self._device).of_parts(block, lambda mine, theirs: mine.scores(theirs))
            return [scores.cpu().numpy() for scores in of_heads]

        return [np.concatenate(scores) for scores in zip(*share_out(of_part, parts), strict=True)]
