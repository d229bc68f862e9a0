"""Rows that should not be in the same batch, and an order of all rows that keeps them apart.

Two rows clash when their queries are the same text, or when a passage is known to answer both: the positive of one
would stand among the negatives of the other.

Rows that clash, directly or through others, form a component. The rows of a component are dealt to the batches in
turn. If a component has no more rows than there are batches, this separates all its rows. A larger component is spread
as evenly as possible. Its rows that still clash are swapped with other rows as long as that helps.

Shapes: n rows, E edges.
"""

import numpy as np
from numpy.typing import NDArray

from biencoder.data.random_bits import splitmix64
from biencoder.data.stored_numbers import kept, pieces
from biencoder.data.table import Ragged, offsets_of

ROUNDS_WITHOUT_GAIN = 16  # swapping stops after this many; rows that still clash stay where they are


class Clashes:
    """Which of n rows clash.

    Args:
        queries: int64 ``[n]``, the number of each row's query.
        answers: the passages known to answer each query, by that number; each once.
    """

    def __init__(self, queries: NDArray[np.int64], answers: Ragged) -> None:
        rows_of_query = np.bincount(queries, minlength=len(answers))
        distinct = np.flatnonzero(rows_of_query)
        query = (np.cumsum(rows_of_query > 0) - 1)[queries]
        count = len(distinct)
        owner, passage, passages = _shared(answers if count == len(answers) else answers.take(distinct))
        component = _components(owner, passage, count)[query]
        self._query = kept(query)
        self._size = kept(np.bincount(component, minlength=count))
        self._component = kept(np.where(self._size[component] > 1, component, -1))  # [n]; -1: clashes with none
        # Two queries of a batch must have no key in common. A query's keys are itself and the passages that it shares.
        offsets = offsets_of(1 + np.bincount(owner, minlength=count))
        is_itself = np.zeros(offsets[-1], np.bool_)
        is_itself[offsets[:-1]] = True
        keys = np.empty(len(is_itself), np.uint64)
        keys[is_itself], keys[~is_itself] = np.arange(count), count + passage
        self._keys = Ragged(kept(keys), offsets)
        self._key_count = count + passages

    def order(self, bits: NDArray[np.uint64], batch_size: int) -> NDArray[np.int64]:
        """The order from which batches are cut: int64 ``[n]``.

        Args:
            bits: uint64 ``[n]``, random bits of each row. If no rows clash, the order is the order of the bits. If some
                do, the rows without a clash fill up the batches in that order.
            batch_size: rows in a batch; the last one may have fewer.
        """
        shuffled = np.argsort(bits, kind="stable")
        batches = -(-len(bits) // batch_size)
        if batch_size == 1 or batches < 2 or not (self._component >= 0).any():
            return shuffled
        batch = self._deal(shuffled, bits, batch_size, batches)
        crowded = self._crowded(batches, least=batches)  # rows of smaller components are in separate batches already
        if len(crowded):
            self._swap(batch, crowded, bits)
        return np.lexsort((splitmix64(bits), batch))  # the place of a dealt row within its batch is random

    def part(self, order: NDArray[np.int64], bits: NDArray[np.uint64], batch_size: int) -> NDArray[np.int64]:
        """A given order of the rows, in which rows that clash within a batch are swapped with others.

        Args:
            order: int64 ``[n]``; batches would be cut from it if no rows clashed.
            bits: uint64 ``[n]``, random bits of each row.
            batch_size: rows a batch; the last one may have fewer.
        """
        batches = -(-len(order) // batch_size)
        if batch_size == 1 or batches < 2 or not (self._component >= 0).any():
            return order
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        batch = place // batch_size
        self._swap(batch, self._crowded(batches, least=2), bits)
        return np.lexsort((place, batch))

    def _deal(
        self, shuffled: NDArray[np.int64], bits: NDArray[np.uint64], batch_size: int, batches: int
    ) -> NDArray[np.int64]:
        """The batch of each row. Components are dealt first, one after the other; then the other rows."""
        bound = shuffled[self._component[shuffled] >= 0]
        distinct, first, component = np.unique(self._component[bound], return_index=True, return_inverse=True)
        # First come components that need a place in every batch, including the last and smallest one.
        class_of = np.select([self._size[distinct] == batches, self._size[distinct] > batches], [0, 1], 2)
        rank = np.empty_like(first)
        rank[np.lexsort((first, class_of))] = np.arange(len(first))
        bound = bound[np.argsort(rank[component], kind="stable")]

        last = len(shuffled) - (batches - 1) * batch_size  # rows of the last batch, full after as many rounds
        turn = np.arange(len(bound))
        place = np.where(turn < last * batches, turn % batches, (turn - last * batches) % (batches - 1))
        in_turn = np.append(np.argsort(splitmix64(bits[: batches - 1]), kind="stable"), batches - 1)
        batch = np.full(len(shuffled), -1)
        batch[bound] = in_turn[place]
        room = np.append(np.full(batches - 1, batch_size), last) - np.bincount(batch[bound], minlength=batches)
        batch[shuffled[batch[shuffled] < 0]] = np.repeat(np.arange(batches), room)
        return batch

    def _crowded(self, batches: int, least: int) -> NDArray[np.int64]:
        """Rows of components of at least ``least`` rows, without those whose key is in more rows than batches exist."""
        rows = np.flatnonzero(self._component >= 0)
        rows = rows[self._size[self._component[rows]] >= least]
        positions, offsets = self._keys.positions(self._query[rows])
        keys = self._keys.values[positions].astype(np.int64)
        hopeless = np.bincount(keys, minlength=self._key_count)[keys] > batches
        owner = np.repeat(np.arange(len(rows)), np.diff(offsets))
        left_out = np.bincount(owner[hopeless], minlength=len(rows)) > 0
        found: NDArray[np.int64] = rows[~left_out]
        return found

    def _swap(self, batch: NDArray[np.int64], crowded: NDArray[np.int64], bits: NDArray[np.uint64]) -> None:
        """Change ``batch`` in place: swap rows that clash with rows of other batches, if both then clash with none."""
        keys = self._keys.take(self._query[crowded])
        owner, values = keys.owners(), keys.values.astype(np.int64)
        movable = np.concatenate([crowded, np.flatnonzero(self._component < 0)])
        fewest, stalled, number = len(crowded) + 1, 0, 0
        while stalled < ROUNDS_WITHOUT_GAIN:
            codes = batch[crowded][owner] * self._key_count + values
            order = np.argsort(codes, kind="stable")
            taken = codes[order]
            clashing = np.unique(owner[order[1:][taken[1:] == taken[:-1]]])
            if not len(clashing):
                return
            stalled = 0 if len(clashing) < fewest else stalled + 1
            fewest, number = min(fewest, len(clashing)), number + 1

            pick = (splitmix64(bits[crowded[clashing]] ^ np.uint64(number)) % np.uint64(len(movable))).astype(np.int64)
            pick, first = np.unique(pick, return_index=True)
            is_free = ~np.isin(pick, clashing)
            pick, moved = pick[is_free], clashing[first[is_free]]
            here, there = batch[crowded[moved]], batch[movable[pick]]
            fits = ~self._meets(keys, moved, there, taken)
            binds = pick < len(crowded)
            fits[binds] &= ~self._meets(keys, pick[binds], here[binds], taken)
            batch[crowded[moved[fits]]], batch[movable[pick[fits]]] = there[fits], here[fits]

    def _meets(
        self, keys: Ragged, lists: NDArray[np.int64], batch: NDArray[np.int64], taken: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which of the lists have a key that is already taken in the given batch."""
        positions, offsets = keys.positions(lists)
        owner = np.repeat(np.arange(len(lists)), np.diff(offsets))
        codes = batch[owner] * self._key_count + keys.values[positions].astype(np.int64)
        found = taken[np.minimum(np.searchsorted(taken, codes), len(taken) - 1)] == codes
        return np.bincount(owner[found], minlength=len(lists)) > 0


def _shared(answers: Ragged) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The passages that answer several queries: a query and the number of a passage, ``[E]`` each, and how many."""
    ordered = np.sort(answers.values)
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    places, passages, start = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for part in pieces(answers.values) if len(several) else ():
        number = np.searchsorted(several, part).clip(max=len(several) - 1)
        found = np.flatnonzero(several[number] == part)
        places.append(start + found)
        passages.append(number[found])
        start += len(part)
    owner = np.searchsorted(answers.offsets, np.concatenate(places), side="right") - 1
    return owner, np.concatenate(passages), len(several)


def _components(owner: NDArray[np.int64], passage: NDArray[np.int64], queries: int) -> NDArray[np.int64]:
    """The connected component of each query, named by the smallest query in it: int64 ``[queries]``.

    FastSV (Zhang, Azad and Hu 2020): in each round, every query moves below the smallest query that it knows. The
    number of rounds grows with the logarithm of the longest path.

    Args:
        owner: int64 ``[E]``, a query, ascending.
        passage: int64 ``[E]``, a passage that answers it; queries with a passage in common are connected.
        queries: how many there are.
    """
    component = np.arange(queries)
    bound, owner = np.unique(owner, return_inverse=True)  # the others are alone
    component[bound] = bound[_components_of_bound(owner, passage, len(bound))]
    return component


def _components_of_bound(owner: NDArray[np.int64], passage: NDArray[np.int64], queries: int) -> NDArray[np.int64]:
    order = np.argsort(passage, kind="stable")
    owner, passage = owner[order], passage[order]
    same = passage[1:] == passage[:-1]
    one, other = owner[:-1][same], owner[1:][same]
    parent = np.arange(queries)
    while True:
        above = parent[parent]
        lower = above.copy()
        for here, there in ((one, other), (other, one)):
            np.minimum.at(lower, parent[here], above[there])
            np.minimum.at(lower, here, above[there])
        if np.array_equal(lower, parent):
            return parent
        parent = lower
