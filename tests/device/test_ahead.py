"""What is made ahead, and when."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from biencoder.device.ahead import made_ahead, one_behind
from biencoder.device.cpu import Cpu

CPU = torch.device("cpu")


def test_the_next_one_is_made_while_one_is_in_use() -> None:
    began = [threading.Event() for _ in range(4)]

    def make(number: int) -> int:
        began[number].set()
        return number

    got = []
    for number in made_ahead((partial(make, n) for n in range(4)), CPU):
        got.append(number)
        assert all(event.wait(5) for event in began[: number + 2])
        assert not any(event.is_set() for event in began[number + 3 :])
    assert got == [0, 1, 2, 3]
    assert list(made_ahead([], CPU)) == []


def test_the_thread_takes_the_device_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, str]] = []
    monkeypatch.setattr(Cpu, "take", lambda _, number: taken.append((number, threading.current_thread().name)))
    list(made_ahead([int, int], torch.device("cpu", 3)))
    assert [number for number, _ in taken] == [3]
    assert taken[0][1] != threading.current_thread().name


def test_an_error_comes_where_its_result_would_be() -> None:
    makers = [partial(divmod, 7, divisor) for divisor in (2, 0)]
    results = made_ahead(makers, CPU)
    assert next(results) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_each_is_fetched_after_the_next_is_made() -> None:
    events = []

    def made() -> Iterator[int]:
        for number in range(3):
            events.append(f"made {number}")
            yield number

    for number in one_behind(made()):
        events.append(f"fetched {number}")
    assert events == ["made 0", "made 1", "fetched 0", "made 2", "fetched 1", "fetched 2"]
