"""Which examples form step s: a pure function of (data, seed, step) that knows no ranks, and which are no negatives.

Random numbers are counter-based: Philox (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3") for the
order of an epoch and the SplitMix64 finaliser (Steele et al. 2014) for the choices within a row. Both give the same
bits on every machine and numpy version, which numpy's own ``permutation`` does not promise.

Shapes: B queries a global batch, P passages in it, b queries of one rank.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biencoder.data.table import ExampleTable, Ragged

_POSITIVES, _NEGATIVES = 1, 2  # streams of the choices within a row


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The global batch of one step; what each rank takes of it is ``share``.

    Attributes:
        step: from 0.
        epoch: from 0.
        rows: int64 ``[B]``, rows of the table.
        passage_row: int64 ``[P]``, the place in ``rows`` (0 … B-1) of the query whose group the passage is in.
        passage_index: int64 ``[P]``, which of its row's positives or negatives the passage is.
        is_positive: bool ``[P]``; one a group, its first.
        passage_hash: uint64 ``[P]``, the hash of the passage's text.
        group_starts: int64 ``[B + 1]``; query i's group is the passages from ``group_starts[i]`` to
            ``group_starts[i + 1]``, that one left out.
    """

    step: int
    epoch: int
    rows: NDArray[np.int64]
    passage_row: NDArray[np.int64]
    passage_index: NDArray[np.int64]
    is_positive: NDArray[np.bool_]
    passage_hash: NDArray[np.uint64]
    group_starts: NDArray[np.int64]


class Sampler:
    """Cuts the shuffled table into batches and draws each row's positive and hard negatives.

    Args:
        table: the training examples.
        batch_size: queries a global batch; the last one of an epoch may have fewer.
        group_size: passages a query, the positive among them. A row with fewer hard negatives has a smaller group.
        seed: any integer from 0 to 2^64 - 1.
    """

    def __init__(self, table: ExampleTable, *, batch_size: int, group_size: int, seed: int) -> None:
        self._table = table
        self._batch_size = batch_size
        self._group_size = group_size
        self._seed = seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch, a partial last one counted."""
        return -(-len(self._table) // self._batch_size)

    def plan(self, step: int) -> BatchPlan:
        """The batch of a step, from 0; the same whatever was asked before."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = self._epoch_order(epoch)[place * self._batch_size : (place + 1) * self._batch_size]
        positive, positive_hash = self._positives(epoch, rows)
        owner, negative, negative_hash = self._negatives(epoch, rows)
        starts = np.arange(len(rows) + 1) + np.searchsorted(owner, np.arange(len(rows) + 1))

        is_positive = np.zeros(starts[-1], dtype=np.bool_)
        is_positive[starts[:-1]] = True
        index = np.empty(len(is_positive), dtype=np.int64)
        hashes = np.empty(len(is_positive), dtype=np.uint64)
        index[is_positive], index[~is_positive] = positive, negative
        hashes[is_positive], hashes[~is_positive] = positive_hash, negative_hash
        passage_row = np.repeat(np.arange(len(rows)), np.diff(starts))
        return BatchPlan(step, epoch, rows, passage_row, index, is_positive, hashes, starts)

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order[0] != epoch:
            key = np.array([self._seed, epoch], dtype=np.uint64)
            draws = np.random.Philox(key=key).random_raw(len(self._table))
            self._order = (epoch, np.argsort(draws, kind="stable"))
        return self._order[1]

    def _positives(self, epoch: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """One positive a row: which it is, and its hash; both ``[B]``."""
        hashes = self._table.positive_hashes
        draws = self._draws(epoch, _POSITIVES, rows, np.zeros_like(rows))
        index = (draws % hashes.lengths_of(rows).astype(np.uint64)).astype(np.int64)
        return index, hashes.values[hashes.offsets[rows] + index]

    def _negatives(
        self, epoch: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
        """Up to ``group_size - 1`` negatives a row without replacement: place of the row, which it is, its hash."""
        positions, offsets = self._table.negative_hashes.positions(rows)
        owner = np.repeat(np.arange(len(rows)), np.diff(offsets))
        index = np.arange(len(owner)) - offsets[owner]
        order = np.lexsort((self._draws(epoch, _NEGATIVES, rows[owner], index), owner))
        # Sorted by draw within each row: the first ones are the chosen.
        chosen = order[index < self._group_size - 1]
        return owner[chosen], index[chosen], self._table.negative_hashes.values[positions[chosen]]

    def _draws(self, epoch: int, stream: int, rows: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.uint64]:
        """64 random bits for each (row, index), a function of the seed, the epoch and the stream besides."""
        state = np.full(len(rows), self._seed, dtype=np.uint64)
        for word in (np.uint64(epoch), np.uint64(stream), rows.astype(np.uint64), index.astype(np.uint64)):
            state = scramble(state ^ word)
        return state


def scramble(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 bits that look random, a function of each 64 given: SplitMix64's counter step and finaliser (modulo 2^64)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def share(total: int, rank: int, world: int) -> slice:
    """The part of ``total`` queries that a rank takes: contiguous, in rank order, sizes that differ by one at most."""
    return slice(total * rank // world, total * (rank + 1) // world)


class KnownPositives:
    """All passages that are known to answer a query: its row's positives and those of rows with the same query text."""

    def __init__(self, table: ExampleTable) -> None:
        _, query = np.unique(table.query_hashes, return_inverse=True)
        owner, passage = query[table.positive_hashes.owners()], table.positive_hashes.values
        order = np.lexsort((passage, owner))
        owner, passage = owner[order], passage[order]
        is_first = np.ones(len(owner), dtype=np.bool_)
        is_first[1:] = (owner[1:] != owner[:-1]) | (passage[1:] != passage[:-1])
        owner, passage = owner[is_first], passage[is_first]
        self._query = query  # [n]: the number of each row's query text
        self._positives = Ragged(passage, np.searchsorted(owner, np.arange(query.max(initial=-1) + 2)))

    def mask(self, plan: BatchPlan, queries: slice, passages: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """Which passages of the batch are no negatives of which queries, bool ``[b, p]``.

        True where the passage's text equals any known positive of the query, at the query's own positive too.

        Args:
            plan: the global batch.
            queries: which of its queries, as ``share`` says.
            passages: ``[p]``, which of its passages; None for all P.
        """
        known = self._positives.take(self._query[plan.rows[queries]])
        hashes = plan.passage_hash if passages is None else plan.passage_hash[passages]
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        first = np.searchsorted(hashes, known.values, side="left")
        found = np.searchsorted(hashes, known.values, side="right") - first  # passages with each known text
        before = np.cumsum(found) - found
        place = np.arange(found.sum()) + np.repeat(first - before, found)
        mask = np.zeros((len(known), len(hashes)), dtype=np.bool_)
        mask[np.repeat(known.owners(), found), order[place]] = True
        return mask
