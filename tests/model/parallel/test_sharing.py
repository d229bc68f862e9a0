"""How work is parted, in threads that stand for ranks."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import pytest

from biencoder.model.parallel import sharing
from biencoder.model.parallel.sharing import (
    Ranks,
    by_turns,
    first_rank_first,
    gathered,
    my_share,
    parted,
    share_out,
    told,
)


class Threads(Ranks):
    """One of several threads, which meet at a barrier."""

    def __init__(self, mine: int, meeting: threading.Barrier, board: list[Any]) -> None:
        self.mine, self.number = mine, meeting.parties
        self._meeting, self._board = meeting, board

    def gather(self, value: Any) -> list[Any]:
        self._board[self.mine] = value
        self._meeting.wait()
        values = list(self._board)
        self._meeting.wait()
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]


def on_ranks(number: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``work`` returns on each rank."""
    meeting, board = threading.Barrier(number, timeout=20), [None] * number

    def on_one(mine: int) -> Any:
        with sharing.shared_among(Threads(mine, meeting, board)):
            return work(mine)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(on_one, range(number)))


RANKS = pytest.mark.parametrize("number", [1, 2, 3, 5])
SQUARES = [n * n for n in range(11)]


@RANKS
def test_work_that_is_shared_out_comes_back_in_order_on_all_ranks(number: int) -> None:
    did: list[list[int]] = [[] for _ in range(number)]

    def work(rank: int) -> list[int]:
        def square(n: int) -> int:
            assert sharing.ranks() == 1  # what it calls is its own
            did[rank].append(n)
            return n * n

        return share_out(square, range(11))

    assert on_ranks(number, work) == [SQUARES] * number
    assert sorted(chain(*did)) == list(range(11))
    assert max(map(len, did)) == -(-11 // number)


@RANKS
def test_pieces_by_turns_are_done_once_but_for_the_last_few_which_all_do_together(number: int) -> None:
    alone: list[list[int]] = [[] for _ in range(number)]
    together: list[list[int]] = [[] for _ in range(number)]

    def work(rank: int) -> list[int]:
        def square(n: int) -> int:
            (alone if sharing.ranks() == 1 else together)[rank].append(n)
            return n * n

        return list(by_turns(square, iter(range(11))))

    assert on_ranks(number, work) == [SQUARES] * number
    whole = 11 // number * number
    assert sorted(chain(*alone)) == list(range(whole))
    assert together == [list(range(whole, 11))] * number


@RANKS
def test_whole_parts_and_turns_at_the_rest_leave_nothing_out(number: int) -> None:
    def work(_: int) -> tuple[list[int], list[int]]:
        whole, rest = parted(range(11))
        return whole, list(my_share(rest))

    shares = on_ranks(number, work)
    assert sorted(n for whole, rest in shares for n in whole + rest) == list(range(11))
    assert len({len(whole) for whole, _ in shares}) == 1


@RANKS
def test_what_is_gathered_is_all_and_progress_ends_at_all(number: int) -> None:
    def work(_: int) -> tuple[list[tuple[list[int], int]], list[int]]:
        heard: list[int] = []
        pieces = [[0, 1, 2], [3, 4], [5], [6, 7, 8, 9]]
        mine = ((places, sum(places)) for places in my_share(pieces))
        return sorted(gathered(mine, 10, heard.append)), heard

    for found, heard in on_ranks(number, work):
        assert found == [([0, 1, 2], 3), ([3, 4], 7), ([5], 5), ([6, 7, 8, 9], 30)]
        assert heard == sorted(heard)
        assert heard[-1] == 10
        assert heard.count(10) == 1


def test_the_first_rank_comes_first_and_its_word_holds() -> None:
    order: list[int] = []

    def work(rank: int) -> tuple[int, int]:
        def make() -> int:
            order.append(rank)
            return sharing.ranks()

        return told(rank), first_rank_first(make)

    assert on_ranks(3, work) == [(0, 1)] * 3
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]
