"""Work that the ranks of a command share: who does which pieces, and how all ranks get to know all results.

All ranks make the same calls with the same arguments. The pieces of the work do not depend on the number of ranks, and
each is computed whole by one of them. So the results have the same bits on any number of ranks: which other texts a
text is packed beside may change its last bits.

``biencoder.distributed`` says who the ranks are. Without it, one process does everything.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextvars import ContextVar
from itertools import islice
from typing import Any, TypeVar

Piece = TypeVar("Piece")
Places = TypeVar("Places", bound=Sized)
Result = TypeVar("Result")


class Ranks:
    """The processes that share the work; here, one alone."""

    number = 1
    mine = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.mine == 0

    def gather(self, value: Any) -> list[Any]:
        """What each rank gives, in rank order, on all of them."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """What the first rank gives, on all of them."""
        return value


_ranks: ContextVar[Ranks] = ContextVar("ranks", default=Ranks())  # noqa: B039 - it has no state


@contextlib.contextmanager
def shared_among(ranks: Ranks) -> Iterator[None]:
    """Inside of this block, these ranks share the work; all of them must enter it."""
    token = _ranks.set(ranks)
    try:
        yield
    finally:
        _ranks.reset(token)


def alone() -> contextlib.AbstractContextManager[None]:
    """Inside of this block, this rank does its own work, of which the others do not know."""
    return shared_among(Ranks())


def ranks() -> int:
    """How many share the work."""
    return _ranks.get().number


def is_first() -> bool:
    """Whether this is the rank that writes files."""
    return _ranks.get().is_first


def told(value: Result) -> Result:
    """The first rank's value, on all ranks; what it wrote before is there when they go on."""
    known: Result = _ranks.get().broadcast(value)
    return known


def first_rank_first(make: Callable[[], Result]) -> Result:
    """What ``make`` returns; the others call it when the first rank has, and find what it wrote."""
    if is_first():
        with alone():
            made = make()
    told(None)
    if not is_first():
        with alone():
            made = make()
    return made


def parted(parts: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Parts that this rank does whole, and the last ones, which all ranks do together, piece by piece.

    So long as there is a part for each rank, nobody waits, and what comes before the pieces is done by one rank alone.
    """
    among = _ranks.get()
    whole = len(parts) // among.number * among.number
    return list(parts[among.mine : whole : among.number]), list(parts[whole:])


def my_share(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces that this rank does: the ranks take turns."""
    among = _ranks.get()
    return islice(pieces, among.mine, None, among.number)


def gathered(
    mine: Iterable[tuple[Places, Result]], texts: int, progress: Callable[[int], None] | None
) -> Iterable[tuple[Places, Result]]:
    """What all ranks have made, rank by rank; alone, each result as soon as it is made.

    Args:
        mine: what this rank makes, and the places of the texts that it is made of.
        texts: how many all ranks have.
        progress: called with the number of texts done; the other ranks are taken to be as far as this one.
    """
    counted = _counted(mine, texts, progress)
    return counted if ranks() == 1 else [each for part in _ranks.get().gather(list(counted)) for each in part]


def _counted(
    mine: Iterable[tuple[Places, Result]], texts: int, progress: Callable[[int], None] | None
) -> Iterator[tuple[Places, Result]]:
    done = 0
    for places, result in mine:
        yield places, result
        done += ranks() * len(places)
        if progress is not None and (ranks() == 1 or done < texts):
            progress(done)
    if progress is not None and ranks() > 1:
        progress(texts)


def share_out(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """``work`` of each piece, in order; the ranks take turns and tell each other."""
    asked = my_share(pieces)
    with alone():
        mine = [work(piece) for piece in asked]
    of_ranks = _ranks.get().gather(mine)
    return [of_ranks[number % len(of_ranks)][number // len(of_ranks)] for number in range(len(pieces))]


def by_turns(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
    """``work`` of each piece, in order: as many at a time as there are ranks, one by each, of which none waits.

    The last pieces may be fewer than there are ranks. All ranks call ``work`` with each of those, and it may share.
    """
    left = iter(pieces)
    while group := list(islice(left, ranks())):
        yield from share_out(work, group) if len(group) == ranks() else map(work, group)
