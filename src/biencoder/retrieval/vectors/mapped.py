"""Vectors that are made block by block, so that memory never holds all of them."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, overload

import numpy as np
from numpy.typing import NDArray

from biencoder.files import room_for
from biencoder.model.parallel.sharing import is_first, told
from biencoder.model.representations.ragged import Ragged, Vectors


@overload
def map_vectors(blocks: Iterable[np.ndarray], dim: int) -> np.ndarray: ...
@overload
def map_vectors(blocks: Iterable[Vectors], dim: int) -> Vectors: ...
def map_vectors(blocks: Iterable[Vectors], dim: int) -> Vectors:
    """All blocks end to end, float32, memory-mapped from an unnamed file in the temporary folder.

    Ranks of one machine that share their work map one file, which the first of them writes.

    Args:
        blocks: ``[n, D]`` each, or vectors of tokens.
        dim: D, if there is no block.

    Raises:
        UserError: no room in the folder for temporary files.
    """
    rows, starts, last = 0, list[NDArray[np.int64]](), None
    with room_for("the vectors of texts"), _unnamed_file() as (file, writes):
        for block in blocks:
            vectors: NDArray[np.float32] = block.vectors if isinstance(block, Ragged) else block
            if isinstance(block, Ragged):
                last = block
                starts.append(rows + block.starts[:-1])
            dim = vectors.shape[1]
            if writes:
                file.write(np.ascontiguousarray(vectors, dtype=np.float32).data)
            rows += len(vectors)
        file.flush()
        told(None)  # the first rank has written all
        found = np.memmap(file, np.float32, "r", shape=(rows, dim)) if rows else np.empty((0, dim), np.float32)
        return last.with_rows(found, np.concatenate([*starts, [rows]])) if last is not None else found


@contextlib.contextmanager
def _unnamed_file() -> Iterator[tuple[IO[bytes], bool]]:
    """A file in the temporary folder, and whether this rank writes it; if not, it is the first rank's."""
    with tempfile.TemporaryFile(prefix="biencoder-") as file:
        path, identity = told((f"/proc/{os.getpid()}/fd/{file.fileno()}", _identity(file)))
        theirs = None if is_first() else _opened(Path(path), identity)
        if theirs is None:
            yield file, True
        else:
            with theirs:
                yield theirs, False


def _opened(path: Path, identity: tuple[int, int]) -> IO[bytes] | None:
    """The file at a path; None if the first rank, which named it, is on another machine."""
    try:
        file = path.open("rb")
    except OSError:
        return None
    if _identity(file) == identity:
        return file
    file.close()
    return None


def _identity(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino
