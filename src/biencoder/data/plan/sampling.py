"""Which examples form a step, and which of their passages are not negatives.

The examples of a step are a pure function of data, seed and step; the number of ranks plays no part. All rows of a
global batch are from one data set. Random numbers are counter-based, see :mod:`biencoder.data.random_bits`.

Shapes: B queries in a global batch, P passages in it, b queries of one rank.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biencoder.config.choices import SIZE
from biencoder.data.plan.clashes import Clashes
from biencoder.data.plan.mixing import Mix, turns_per_epoch
from biencoder.data.plan.similar_groups import shuffle_clusters
from biencoder.data.random_bits import bits_of, shuffle_bits
from biencoder.data.stored_numbers import kept, taken
from biencoder.data.table import ExampleTable

_POSITIVES, _NEGATIVES = 1, 2  # streams of the choices within a row


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The global batch of one step; :func:`share` says which part each rank takes.

    Attributes:
        step: from 0.
        epoch: from 0.
        data_set: the one that all rows belong to.
        rows: int64 ``[B]``, rows of the table.
        passage_row: int64 ``[P]``, the query whose group holds the passage, as a place in ``rows`` (0 … B-1).
        passage_index: int64 ``[P]``, which of its row's positives or negatives the passage is.
        is_positive: bool ``[P]``; one per group, the first.
        passage_hash: uint64 ``[P]``, the hash of the passage's text.
        group_starts: int64 ``[B + 1]``; the group of query i is the passages from ``group_starts[i]`` up to, but not
            including, ``group_starts[i + 1]``.
    """

    step: int
    epoch: int
    data_set: int
    rows: NDArray[np.int64]
    passage_row: NDArray[np.int64]
    passage_index: NDArray[np.int64]
    is_positive: NDArray[np.bool_]
    passage_hash: NDArray[np.uint64]
    group_starts: NDArray[np.int64]


class Sampler:
    """Cuts the shuffled rows of each data set into batches and draws each row's positive and hard negatives.

    Args:
        table: the training examples.
        batch_size: queries in a global batch; the last batch of a pass over a data set may have fewer.
        group_size: passages per query, including the positive; one number for all data sets or one for each. A row
            with fewer hard negatives has a smaller group.
        seed: any integer from 0 to 2^64 - 1.
        weights: one for each of the table's data sets, see :func:`~biencoder.data.plan.mixing.turns_per_epoch`.
        mix: how often each data set has a turn; see the same function.
    """

    def __init__(
        self,
        table: ExampleTable,
        *,
        batch_size: int,
        group_size: int | Sequence[int],
        seed: int,
        weights: Sequence[float] = (1.0,),
        mix: str = SIZE,
    ) -> None:
        self._table = table
        self._seed = seed
        self._group_sizes = [group_size] * len(weights) if isinstance(group_size, int) else list(group_size)
        self._decks = [_Deck(table, number, batch_size, seed) for number in range(len(weights))]
        self.turns = turns_per_epoch([deck.batches for deck in self._decks], weights, mix)  # of each data set
        self._mix = Mix(self.turns, seed)

    def over(self, table: ExampleTable) -> "Sampler":
        """A sampler with the same steps over the same rows, but with other hard negatives."""
        sampler = copy.copy(self)
        sampler._table = table
        return sampler

    def clustered(self, places: NDArray[np.int64], size: int) -> "Sampler":
        """A sampler over the same rows, whose batches hold clusters of rows that are hard to tell apart.

        Args:
            places: int64 ``[n]``, each row's place in an order made of clusters, see
                :func:`~biencoder.data.plan.similar_groups.similar_groups`; -1 for rows of data sets in random order.
            size: rows in a cluster.
        """
        sampler = copy.copy(self)
        sampler._decks = [deck.clustered(places, size) for deck in self._decks]
        return sampler

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, including partial ones: as many as one pass over every data set makes."""
        return self._mix.steps_per_epoch

    def plan(self, step: int) -> BatchPlan:
        """The batch of a step, counted from 0. It does not depend on earlier calls."""
        data_set, turn = self._mix.turn(step)
        number, rows = self._decks[data_set].batch(turn)
        positive, positive_hash = self._positives(number, rows)
        owner, negative, negative_hash = self._negatives(number, rows, self._group_sizes[data_set])
        starts = np.arange(len(rows) + 1) + np.searchsorted(owner, np.arange(len(rows) + 1))

        is_positive = np.zeros(starts[-1], dtype=np.bool_)
        is_positive[starts[:-1]] = True
        index = np.empty(len(is_positive), dtype=np.int64)
        hashes = np.empty(len(is_positive), dtype=np.uint64)
        index[is_positive], index[~is_positive] = positive, negative
        hashes[is_positive], hashes[~is_positive] = positive_hash, negative_hash
        passage_row = np.repeat(np.arange(len(rows)), np.diff(starts))
        epoch = step // self.steps_per_epoch
        return BatchPlan(step, epoch, data_set, rows, passage_row, index, is_positive, hashes, starts)

    def _positives(self, number: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """One positive for each row in a pass: its index and its hash; both ``[B]``."""
        hashes = self._table.positive_hashes
        bits = bits_of(self._seed, number, _POSITIVES, rows, 0)
        index = (bits % hashes.lengths_of(rows).astype(np.uint64)).astype(np.int64)
        return index, hashes.values[hashes.offsets[rows] + index]

    def _negatives(
        self, number: int, rows: NDArray[np.int64], group_size: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
        """Up to ``group_size - 1`` negatives per row, without replacement: the row's place, their index and hash."""
        positions, offsets = self._table.negative_hashes.positions(rows)
        owner = np.repeat(np.arange(len(rows)), np.diff(offsets))
        index = np.arange(len(owner)) - offsets[owner]
        order = np.lexsort((bits_of(self._seed, number, _NEGATIVES, rows[owner], index), owner))
        # Within each row, negatives are sorted by their draw; the first ones are chosen.
        chosen = order[index < group_size - 1]
        return owner[chosen], index[chosen], self._table.negative_hashes.values[positions[chosen]]


class _Deck:
    """The rows of one data set. Each pass shuffles them again, so that the rows of a batch do not clash."""

    def __init__(self, table: ExampleTable, data_set: int, batch_size: int, seed: int) -> None:
        self._rows = kept(np.flatnonzero(table.data_set == data_set))
        self._data_set = data_set
        self._batch_size = batch_size
        self._seed = seed
        self._clashes = Clashes(table.query_numbers[self._rows], table.answers)
        self._order: tuple[int, NDArray[np.int64]] = (-1, self._rows)
        self._similar: tuple[NDArray[np.int64], int] | None = None  # order of the rows, and how many make a cluster
        self.batches = -(-len(self._rows) // batch_size)

    def clustered(self, places: NDArray[np.int64], size: int) -> "_Deck":
        deck = copy.copy(self)
        if (places[self._rows] >= 0).all():
            deck._order = (-1, self._rows)
            deck._similar = np.argsort(places[self._rows], kind="stable"), size
        return deck

    def batch(self, turn: int) -> tuple[int, NDArray[np.int64]]:
        """The pass that batch ``turn`` belongs to, from 0, and the rows of the batch."""
        number, place = divmod(turn, self.batches)
        if self._order[0] != number:
            bits = shuffle_bits(len(self._rows), self._seed, number, self._data_set)
            self._order = (number, taken(self._rows, self._shuffled(bits)))
        return number, self._order[1][place * self._batch_size : (place + 1) * self._batch_size]

    def _shuffled(self, bits: NDArray[np.uint64]) -> NDArray[np.int64]:
        if self._similar is None:
            return self._clashes.order(bits, self._batch_size)
        order, size = self._similar
        return self._clashes.part(shuffle_clusters(order, bits, size), bits, self._batch_size)


def share(total: int, rank: int, world: int) -> slice:
    """The contiguous part of ``total`` queries that a rank takes, in rank order. Sizes differ by at most one."""
    return slice(total * rank // world, total * (rank + 1) // world)


class KnownPositives:
    """All passages that are known to answer a query: the positives of all rows with the same query text."""

    def __init__(self, table: ExampleTable) -> None:
        self._query, self._positives = table.query_numbers, table.answers

    def cells(
        self, plan: BatchPlan, queries: slice, passages: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which passages of the batch are not negatives for which queries: rows and columns of a table ``[b, p]``.

        These are the cells where the text of the passage equals a known positive of the query, but for the query's own
        positive itself.

        Args:
            plan: the global batch.
            queries: which of its queries, see ``share``.
            passages: ``[p]``, which of its passages.
        """
        known = self._positives.take(self._query[plan.rows[queries]])
        hashes = plan.passage_hash[passages]
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        first = np.searchsorted(hashes, known.values, side="left")
        found = np.searchsorted(hashes, known.values, side="right") - first  # passages with each known text
        before = np.cumsum(found) - found
        place = np.arange(found.sum()) + np.repeat(first - before, found)
        rows, columns = np.repeat(known.owners(), found), order[place]
        others = passages[columns] != plan.group_starts[queries][rows]
        return rows[others], columns[others]
