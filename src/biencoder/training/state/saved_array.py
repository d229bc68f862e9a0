"""Arrays that decide what a run trains on, kept in its output folder.

A resumed run needs the very same, and cannot compute them again: its model has learnt since.
"""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biencoder.errors import UserError
from biencoder.files import atomic_write

Places = NDArray[np.int64]
DIGEST_BYTES = hashlib.sha256().digest_size


def kept(path: Path, shape: tuple[int, ...], make: Callable[[], Places], *, may_make: bool) -> Places:
    """The array at ``path``, made and written there if it is not.

    Args:
        path: a ``.npy`` file; after the array it holds the SHA-256 of all that comes before.
        shape: of the array.
        make: computes it.
        may_make: the model is the one with which it is to be computed.

    Raises:
        UserError: it should be at ``path`` and is not, or is damaged.
    """
    if path.is_file():
        return _read(path, shape)
    if not may_make:
        raise UserError(f"{path}: is gone; the run cannot go on without it. Start it in a new folder")
    places = make()
    with atomic_write(path, "wb") as file:
        buffer = io.BytesIO()  # of a full disk, numpy says how many items it wrote, and not why
        np.save(buffer, places, allow_pickle=False)
        file.write(buffer.getbuffer())
        file.write(hashlib.sha256(buffer.getbuffer()).digest())
    return places


def _read(path: Path, shape: tuple[int, ...]) -> Places:
    content = path.read_bytes()
    array, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    damaged = UserError(f"{path}: is damaged; the run cannot go on without it. Start it in a new folder")
    if hashlib.sha256(array).digest() != digest:
        raise damaged
    places: Places = np.load(io.BytesIO(array), allow_pickle=False)
    if places.shape != shape or places.dtype != np.int64:
        raise damaged
    return places
