"""Which data set a step takes its batch from. This depends on the seed and the step alone."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from biencoder.config.choices import EQUAL, SIZE, SQRT
from biencoder.data.random_bits import bits_of

# Turn the sizes of the data sets into proportions of steps; an empty data set gets no steps.
MIXES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    SIZE: lambda size: size,
    SQRT: np.sqrt,
    EQUAL: lambda size: np.minimum(size, 1.0),
}

_TURNS = 3  # stream of random numbers; 1 and 2 choose within a row


def turns_per_epoch(batches: Sequence[int], weights: Sequence[float], mix: str) -> NDArray[np.int64]:
    """How many steps of an epoch each data set has. In all, an epoch has as many as one pass over all data sets.

    The shares are rounded by largest remainder. A data set with rows has at least one step. If its share is
    smaller, the epoch grows by that step.

    Args:
        batches: the size of each data set: batches in one pass over its rows.
        weights: each data set's share is multiplied by its weight.
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
        """The data set of a step, counted from 0, and how many batches it has given before."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, *self._epoch(epoch))
        _, data_sets, before = self._order
        number = int(data_sets[place])
        return number, epoch * int(self._turns[number]) + int(before[place])

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each step of an epoch: its data set, and how many earlier steps of the epoch had the same one."""
        data_set = np.repeat(np.arange(len(self._turns)), self._turns)
        before = np.arange(len(data_set)) - (np.cumsum(self._turns) - self._turns)[data_set]
        within = (bits_of(self._seed, epoch, _TURNS, data_set, before) >> np.uint64(11)) * 2.0**-53
        order = np.argsort((before + within) / self._turns[data_set], kind="stable")
        return data_set[order], before[order]
