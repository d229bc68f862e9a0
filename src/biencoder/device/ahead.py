"""Work of the host that is done while the device is busy."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from biencoder.device.choice import facts

Made = TypeVar("Made")


def made_ahead(makers: Iterable[Callable[[], Made]], device: torch.device) -> Iterator[Made]:
    """The results of some functions, in order. Each runs in a thread while the result before it is in use.

    Args:
        makers: the functions; at most two of their results exist at a time.
        device: whose memory they may write to. A thread of PyTorch computes on the first GPU unless it is told.
    """
    with ThreadPoolExecutor(1, initializer=facts(device).take, initargs=(device.index or 0,)) as background:
        coming = None
        for make in makers:
            following = background.submit(make)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def one_behind(items: Iterable[Made]) -> Iterator[Made]:
    """The items, each after the next one is made: whoever waits for the device's answer has given it more to do."""
    waiting: list[Made] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting
