"""Arrays that decide what a run trains on, saved in its output folder.

A resumed run needs the same arrays and cannot compute them again, because its model has learned since.
"""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biencoder.errors import UserError
from biencoder.files import atomic_write
from biencoder.model.parallel.sharing import is_first, told

Places = NDArray[np.int64]
DIGEST_BYTES = hashlib.sha256().digest_size


def saved_array(path: Path, shape: tuple[int, ...], make: Callable[[], Places], *, may_make: bool) -> Places:
    """The array at ``path``; if it does not exist, all ranks compute it together, and the first one writes it there.

    Args:
        path: a ``.npy`` file that ends in the SHA-256 of everything before.
        shape: of the array.
        make: computes the array.
        may_make: the model is still the one that the array must be computed with.

    Raises:
        UserError: the array should be at ``path`` but is missing or damaged.
    """
    known = told(_read(path, shape) if is_first() and path.is_file() else None)
    if known is not None:
        return known
    if not may_make:
        raise UserError(f"{path}: is missing, and the run cannot continue without it. Start again in a new folder")
    places = told(make())
    if is_first():
        _write(path, places)
    return places


def _write(path: Path, places: Places) -> None:
    with atomic_write(path, "wb") as file:
        buffer = io.BytesIO()  # of a full disk, numpy says how many items it wrote, and not why
        np.save(buffer, places, allow_pickle=False)
        file.write(buffer.getbuffer())
        file.write(hashlib.sha256(buffer.getbuffer()).digest())


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
