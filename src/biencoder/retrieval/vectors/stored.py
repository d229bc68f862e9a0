"""A file of vectors, as encoding wrote it; where texts have a vector for each token, a second file counts them."""

from pathlib import Path

import numpy as np

from biencoder.errors import UserError
from biencoder.files import atomic_write, beside
from biencoder.model.representations.ragged import Ragged, TokenVectors, Vectors
from biencoder.retrieval.vectors.csr import CSR, read_csr


def lengths_of(matrix: Path) -> Path:
    """The file that counts the vectors of each text."""
    return beside(matrix, ".lengths.npy")


def write_lengths(matrix: Path, lengths: np.ndarray) -> None:
    """Write how many vectors each text has, before the matrix appears."""
    with atomic_write(lengths_of(matrix), "wb") as file:
        np.save(file, lengths)


def open_vectors(path: Path, *, like: "Vectors | None") -> Vectors:
    """The vectors of a ``.npy`` file, memory-mapped and as they are stored, or the rows of a CSR matrix.

    Args:
        path: of the matrix.
        like: what the model makes of no text, for a matrix with several rows for each text; None for one row.

    Raises:
        UserError: the file, or the one with the lengths, cannot be read, or they do not belong together.
    """
    if path.suffix == CSR:
        return read_csr(path)[0]
    matrix = _open(path)
    if like is None:
        return matrix
    lengths = _open(lengths_of(path))
    if lengths.ndim != 1 or lengths.dtype.kind != "i" or matrix.ndim != 2 or lengths.sum() != len(matrix):
        raise UserError(f"{lengths_of(path)}: does not count the vectors of {path}; encode the texts again")
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return like.with_rows(matrix, starts) if isinstance(like, Ragged) else TokenVectors(matrix, starts)


def _open(path: Path) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as a .npy file ({error})") from error
    if not isinstance(found, np.ndarray):
        raise UserError(f"{path}: holds several arrays, not one")
    return found
