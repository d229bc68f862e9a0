"""Texts that wait to be encoded. Requests take turns, one text each, so that a short one does not wait for a long one.

Shapes: N texts of a request, D dimensions.
"""

import contextlib
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from typing import NamedTuple

import numpy as np

from biencoder.model.tokens import Tokens


class Job:
    """The texts of one request as tokens, and their vectors as they come.

    Args:
        tokens: of each text.
        dim: dimensions of a vector.

    Attributes:
        vectors: ``[N, D]`` float32, when all of them are made. Whoever cancels it wants them no longer.
    """

    def __init__(self, tokens: list[Tokens], dim: int) -> None:
        self.vectors: Future[np.ndarray] = Future()
        self._tokens, self._taken, self._missing = tokens, 0, len(tokens)
        self._made = np.empty((len(tokens), dim), np.float32)

    @property
    def is_over(self) -> bool:
        """Whether no text of it is left to take, or nobody wants the rest."""
        return self._taken == len(self._tokens) or self.vectors.done()

    @property
    def next_size(self) -> int:
        """Tokens of the text that is next."""
        return len(self._tokens[self._taken])

    def take(self) -> "Text":
        """The next text."""
        self._taken += 1
        return Text(self, self._taken - 1, self._tokens[self._taken - 1])

    def put(self, place: int, vector: np.ndarray) -> None:
        """The vector of a text that was taken; only one thread makes vectors."""
        self._made[place] = vector
        self._missing -= 1
        if not self._missing:
            with contextlib.suppress(InvalidStateError):  # cancelled at this very moment
                self.vectors.set_result(self._made)

    def fail(self, error: Exception) -> None:
        """There will be no vectors."""
        with contextlib.suppress(InvalidStateError):
            self.vectors.set_exception(error)


class Text(NamedTuple):
    """A text of a job, and its place there."""

    job: Job
    place: int
    tokens: Tokens


class Turns:
    """The jobs that wait, in turn. Any thread may add one."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def add(self, job: Job) -> None:
        """Let a job wait for its turn."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Wake up whoever waits in :meth:`take`; the jobs that are left get no turn."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self, most_tokens: int) -> list[Text]:
        """The texts whose turn it is, as soon as there is one: up to so many tokens, and at least one text.

        Returns:
            Nothing after :meth:`close`.
        """
        with self._changed:
            while not self._closed:
                if batch := self._next(most_tokens):
                    return batch
                self._changed.wait()
            return []

    def _next(self, most_tokens: int) -> list[Text]:
        batch: list[Text] = []
        tokens = 0
        while self._jobs:
            job = self._jobs.popleft()
            if job.is_over:
                continue
            tokens += job.next_size
            if batch and tokens > most_tokens:
                self._jobs.appendleft(job)
                break
            batch.append(job.take())
            self._jobs.append(job)
        return batch
