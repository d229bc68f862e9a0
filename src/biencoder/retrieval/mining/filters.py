"""Which of a query's most similar candidates may be its hard negatives: one pure function per stage.

A stage says which candidates pass, and knows nothing about other stages. `Funnel` applies them in turn and counts.

Shapes: Q rows (a query with its positives), K candidates per row, most similar first. ``indices_QK`` holds their
numbers, ``scores_QK`` their similarities to the query, and ``keep_QK`` says which candidates are left.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from biencoder.data.random_bits import splitmix64

Scores = NDArray[np.float32]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """Pairs of a list's number and a candidate's number, stored for millions of look-ups.

    Attributes:
        sorted: int64, ``list * candidates + candidate`` for each pair, ascending.
        candidates: number of candidates.
    """

    sorted: Indices
    candidates: int

    @classmethod
    def of(cls, lists: Indices, candidates_of: Indices, candidates: int) -> "Pairs":
        """Pairs of a list and a candidate, one at each place; a candidate of -1 means none."""
        there = candidates_of >= 0
        return cls(np.unique(lists[there] * candidates + candidates_of[there]), candidates)


def not_listed(indices_QK: Indices, list_Q: Indices, listed: Pairs) -> Mask:
    """Passes candidates that are not in their row's list, such as known positives or the row's own negatives.

    Args:
        indices_QK: candidates.
        list_Q: the number of each row's list.
        listed: the contents of the lists.
    """
    if not len(listed.sorted):
        return np.ones(indices_QK.shape, np.bool_)
    pairs_QK = list_Q[:, None] * listed.candidates + indices_QK
    place_QK = np.searchsorted(listed.sorted, pairs_QK).clip(max=len(listed.sorted) - 1)
    return np.asarray(listed.sorted[place_QK] != pairs_QK)


def not_the_query(indices_QK: Indices, own_Q: Indices) -> Mask:
    """Passes candidates other than the query's own text, whose number is in ``own_Q``; -1 if it has none."""
    return np.asarray(indices_QK != own_Q[:, None])


def below_the_top(keep_QK: Mask, skip: int) -> Mask:
    """Passes all remaining candidates except the first ``skip``, the likeliest to be unlabelled answers."""
    return np.asarray(np.cumsum(keep_QK, axis=1) > skip)


def below_limit(scores_QK: Scores, limit_Q: Scores) -> Mask:
    """Passes candidates whose score is strictly below the limit of their row."""
    return np.asarray(scores_QK < limit_Q[:, None])


def share_limit(positive_Q: Scores, share: float) -> Scores:
    """``p - (1 - share) * |p|`` for a positive's score p: ``share * p``, as in NV-Retriever's TopK-PercPos.

    de Souza Moreira et al. 2024, "NV-Retriever", section 4.2. If p is negative, ``share * p`` would be *above* the
    positive, so the limit is as far below p as for a positive score of the same size.
    """
    return np.asarray(positive_Q - np.float32(1 - share) * np.abs(positive_Q), np.float32)


def in_order(keep_QK: Mask, columns_QK: Indices, count: int) -> Mask:
    """The first ``count`` candidates of each row that are left.

    Args:
        keep_QK: which candidates are left.
        columns_QK: the columns of each row in order of preference.
        count: how many to keep.
    """
    preferred_QK = np.take_along_axis(keep_QK, columns_QK, axis=1)
    preferred_QK &= np.cumsum(preferred_QK, axis=1) <= count
    chosen_QK = np.zeros_like(keep_QK)
    np.put_along_axis(chosen_QK, columns_QK, preferred_QK, axis=1)
    return chosen_QK


def by_rank(indices_QK: Indices) -> Indices:
    """Columns in their own order, which prefers the most similar candidates."""
    return np.broadcast_to(np.arange(indices_QK.shape[1]), indices_QK.shape)


def by_chance(indices_QK: Indices, row_Q: Indices, seed: int) -> Indices:
    """Columns in random order, which depends only on the seed, the row's number and the candidate's number."""
    state_Q = splitmix64(splitmix64(np.full(len(row_Q), seed, np.uint64)) ^ row_Q.astype(np.uint64))
    bits_QK = splitmix64(state_Q[:, None] ^ indices_QK.astype(np.uint64))
    return np.argsort(bits_QK, axis=1, kind="stable")


@dataclass
class Funnel:
    """How many candidates each stage removed; stages are in the order of their first use.

    Attributes:
        searched: candidates that went in.
        removed: stage -> candidates that it removed after the stages before it.
    """

    searched: int = 0
    removed: dict[str, int] = field(default_factory=dict)

    def start(self, indices_QK: Indices) -> Mask:
        """The mask before the first stage: all candidates of a block are left."""
        self.searched += indices_QK.size
        return np.ones(indices_QK.shape, np.bool_)

    def apply(self, stage: str, keep_QK: Mask, passes_QK: Mask) -> Mask:
        """What is left after a stage."""
        left_QK = keep_QK & passes_QK
        self.removed[stage] = self.removed.get(stage, 0) + int(keep_QK.sum() - left_QK.sum())
        return left_QK

    def rows(self) -> list[tuple[str, int, int]]:
        """Each stage with what it removed, and what was left after it."""
        left, rows = self.searched, []
        for stage, removed in self.removed.items():
            left -= removed
            rows.append((stage, removed, left))
        return rows
