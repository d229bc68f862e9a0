"""Vectors that are made block by block, so that memory never holds all of them."""

import tempfile
from collections.abc import Iterable
from typing import overload

import numpy as np
from numpy.typing import NDArray

from biencoder.files import room_for
from biencoder.model.representations.ragged import Ragged, Vectors


@overload
def map_vectors(blocks: Iterable[np.ndarray], dim: int) -> np.ndarray: ...
@overload
def map_vectors(blocks: Iterable[Vectors], dim: int) -> Vectors: ...
def map_vectors(blocks: Iterable[Vectors], dim: int) -> Vectors:
    """All blocks end to end, float32, memory-mapped from an unnamed file in the temporary folder.

    Args:
        blocks: ``[n, D]`` each, or vectors of tokens.
        dim: D, if there is no block.

    Raises:
        UserError: no room in the folder for temporary files.
    """
    rows, starts, last = 0, list[NDArray[np.int64]](), None
    with room_for("the vectors of texts"), tempfile.TemporaryFile(prefix="biencoder-") as file:
        for block in blocks:
            vectors: NDArray[np.float32] = block.vectors if isinstance(block, Ragged) else block
            if isinstance(block, Ragged):
                last = block
                starts.append(rows + block.starts[:-1])
            dim = vectors.shape[1]
            file.write(np.ascontiguousarray(vectors, dtype=np.float32).data)
            rows += len(vectors)
        file.flush()
        found = np.memmap(file, np.float32, "r", shape=(rows, dim)) if rows else np.empty((0, dim), np.float32)
        return last.with_rows(found, np.concatenate([*starts, [rows]])) if last is not None else found
