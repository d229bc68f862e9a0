"""Numbers of many rows in memory-mapped files, so that rows cost room on a disk and no memory.

The system reads a page of such a file when it is used, and drops it when memory is needed for something else. The files
have no names: a process that ends leaves none, however it ends.
"""

import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from biencoder.files import room_for

BLOCK = 1 << 18  # numbers in memory at a time; so many, or fewer, need no file


class StoredNumbers:
    """Numbers that are added one part after the other; the last ones are in memory, and the others in a file.

    Args:
        dtype: of the numbers.
    """

    def __init__(self, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        self._held: list[NDArray[Any]] = []
        self._file: IO[bytes] | None = None

    def extend(self, numbers: NDArray[Any]) -> None:
        """Add numbers at the end.

        Raises:
            UserError: the folder for temporary files is full.
        """
        self._held.append(np.asarray(numbers, self._dtype))
        if sum(map(len, self._held)) > BLOCK:
            with room_for("the training data"):
                self._write()

    def finished(self) -> NDArray[Any]:
        """All numbers, in memory if they are few.

        Raises:
            UserError: the folder for temporary files is full.
        """
        if self._file is None:
            return np.concatenate([np.empty(0, self._dtype), *self._held])
        with room_for("the training data"):
            self._write()
            self._file.flush()
            return np.asarray(np.memmap(self._file, self._dtype, "r"))

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="biencoder-")  # noqa: SIM115 (it lives as long as this object)
        for numbers in self._held:
            self._file.write(np.ascontiguousarray(numbers).data)
        self._held.clear()


def pieces(numbers: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The numbers in pieces of at most `BLOCK`."""
    for start in range(0, len(numbers), BLOCK):
        yield numbers[start : start + BLOCK]


def stored(blocks: Iterable[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """All blocks end to end, in memory if they are few.

    Raises:
        UserError: the folder for temporary files is full.
    """
    numbers = StoredNumbers(dtype)
    for block in blocks:
        numbers.extend(block)
    return numbers.finished()


def counted(numbers: int) -> NDArray[np.int64]:
    """0, 1, 2, …: int64 ``[numbers]``, in a file if they are many."""
    return stored((np.arange(at, min(at + BLOCK, numbers)) for at in range(0, numbers, BLOCK)), np.int64)


def kept(numbers: NDArray[Any]) -> NDArray[Any]:
    """The same numbers, in a file if they are many."""
    return numbers if len(numbers) <= BLOCK else stored(pieces(numbers), numbers.dtype)


def taken(numbers: NDArray[Any], places: NDArray[np.int64]) -> NDArray[Any]:
    """``numbers[places]``, in a file if they are many."""
    return numbers[places] if len(places) <= BLOCK else stored((numbers[p] for p in pieces(places)), numbers.dtype)
