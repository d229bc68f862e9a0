"""Which data set a step takes its batch from: a function of the seed and the step alone."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from biencoder.config.choices import EQUAL, SIZE, SQRT
from biencoder.data.random_bits import bits_of

# From the sizes of the data sets to the proportions in which they are drawn; an empty one is never drawn.
MIXES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    SIZE: lambda size: size,
    SQRT: np.sqrt,
    EQUAL: lambda size: np.minimum(size, 1.0),
}

_TURNS = 3  # stream of random numbers; 1 and 2 choose within a row


def turns_per_epoch(batches: Sequence[int], weights: Sequence[float], mix: str) -> NDArray[np.int64]:
    """How many steps of an epoch each data set has; together as many as one pass over all of them takes.

    The shares are rounded by largest remainder. A data set with rows has one step at least, even where its share of the
    epoch is smaller than that; the epoch is so much longer then.

    Args:
        batches: of each data set, for one pass over its rows: its size.
        weights: factors on the shares.
        mix: a name in :data:`MIXES`.
    """
    size = np.array(batches, dtype=np.float64)
    scale = MIXES[mix](size) * np.array(weights)
    exact = scale / scale.sum() * size.sum()
    turns = np.floor(exact).astype(np.int64)
    largest = np.argsort(turns - exact, kind="stable")
    turns[largest[: int(size.sum()) - int(turns.sum())]] += 1
    at_least_one: NDArray[np.int64] = np.maximum(turns, size > 0)
    return at_least_one


class Mix:
    """The turns of the data sets, evenly interleaved: one with k turns an epoch has one in each k-th of the epoch.

    Args:
        turns: how many steps of an epoch each data set has.
        seed: decides the order.
    """

    def __init__(self, turns: NDArray[np.int64], seed: int) -> None:
        self.steps_per_epoch = int(turns.sum())
        self._turns = turns
        self._seed = seed
        self._order: tuple[int, NDArray[np.int64], NDArray[np.int64]] = (-1, turns, turns)

    def turn(self, step: int) -> tuple[int, int]:
        """The data set of a step, from 0, and how many batches were taken from it before."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, *self._epoch(epoch))
        _, data_sets, before = self._order
        number = int(data_sets[place])
        return number, epoch * int(self._turns[number]) + int(before[place])

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each step of an epoch: the data set, and how many of the epoch's steps before it had the same one."""
        data_set = np.repeat(np.arange(len(self._turns)), self._turns)
        before = np.arange(len(data_set)) - (np.cumsum(self._turns) - self._turns)[data_set]
        within = (bits_of(self._seed, epoch, _TURNS, data_set, before) >> np.uint64(11)) * 2.0**-53
        order = np.argsort((before + within) / self._turns[data_set], kind="stable")
        return data_set[order], before[order]
