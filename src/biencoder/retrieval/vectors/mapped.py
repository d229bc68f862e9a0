"""Vectors that are made block by block, so that memory never holds all of them."""

import tempfile
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from biencoder.errors import UserError


def map_vectors(blocks: Iterable[NDArray[np.float32]], dim: int) -> NDArray[np.float32]:
    """All blocks end to end, float32 ``[N, D]``, memory-mapped from an unnamed file in the temporary folder.

    Args:
        blocks: ``[n, D]`` each.
        dim: D.

    Raises:
        UserError: no room in the folder for temporary files.
    """
    rows = 0
    try:
        with tempfile.TemporaryFile(prefix="biencoder-") as file:
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype=np.float32).data)
                rows += len(block)
            file.flush()
            return np.memmap(file, np.float32, "r", shape=(rows, dim)) if rows else np.empty((0, dim), np.float32)
    except OSError as error:
        raise UserError(
            f"cannot store {rows:,} vectors in {tempfile.gettempdir()}: {error.strerror or error}; set TMPDIR to a "
            "folder with more room"
        ) from error
