"""Arrays that decide what a run trains on, saved in its output folder.

A resumed run needs the same arrays and cannot compute them again, because its model has learned since.
"""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biencoder.distributed import broadcast_object, rank
from biencoder.errors import UserError
from biencoder.files import atomic_write

Places = NDArray[np.int64]
DIGEST_BYTES = hashlib.sha256().digest_size


def array_for_all(
    path: Path, shape: tuple[int, ...], make: Callable[[], Places], *, may_make: bool, together: bool
) -> Places:
    """:func:`saved_array` of rank 0, on all ranks; if ``together``, none of them can compute it without the others."""
    places = None
    if rank() == 0:
        places = saved_array(path, shape, make, may_make=may_make)
    elif together and may_make and not path.is_file():  # rank 0 cannot have written it: it waits for this rank
        make()
    found: Places = broadcast_object(places)
    return found


def saved_array(path: Path, shape: tuple[int, ...], make: Callable[[], Places], *, may_make: bool) -> Places:
    """The array at ``path``; it is computed and written there if it does not exist.

    Args:
        path: a ``.npy`` file that ends in the SHA-256 of everything before.
        shape: of the array.
        make: computes the array.
        may_make: the model is still the one that the array must be computed with.

    Raises:
        UserError: the array should be at ``path`` but is missing or damaged.
    """
    if path.is_file():
        return _read(path, shape)
    if not may_make:
        raise UserError(f"{path}: is missing, and the run cannot continue without it. Start again in a new folder")
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
    damaged = UserError(f"{path}: is damaged, and the run cannot continue without it. Start again in a new folder")
    if hashlib.sha256(array).digest() != digest:
        raise damaged
    places: Places = np.load(io.BytesIO(array), allow_pickle=False)
    if places.shape != shape or places.dtype != np.int64:
        raise damaged
    return places
