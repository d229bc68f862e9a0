"""Vectors in fewer bytes, in the layouts of sentence-transformers' ``quantize_embeddings``, which vector stores take.

- ``float16``: half the bytes, nearly exact.
- ``int8``: a quarter. Each dimension is cut into 255 equal steps between its smallest and its largest value.
- ``binary``, ``ubinary``: a 32nd. A bit for each dimension is set where the value is above 0, eight to a byte, the
  first in the highest bit. ``ubinary`` is uint8 (faiss, Qdrant, pgvector); ``binary`` is the same less 128, as int8.

Shapes: N vectors, D dimensions, E bytes of a vector's bits (D / 8, rounded up).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from biencoder.config.choices import BINARY, FLOAT16, FLOAT32, INT8, UBINARY
from biencoder.errors import UserError
from biencoder.files import atomic_write
from biencoder.retrieval.search import blocks

STEPS = 255  # of int8
OFFSET = 128  # between int8 and uint8
MIDDLE = np.float32(0.5)  # of a step
RANGES = "ranges"  # in the description of an int8 matrix
TYPES: dict[str, type[np.generic]] = {
    FLOAT32: np.float32,
    FLOAT16: np.float16,
    INT8: np.int8,
    BINARY: np.int8,
    UBINARY: np.uint8,
}

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Ranges:
    """The smallest and the largest value of each dimension: ``[D]`` float32 both."""

    lowest: Floats
    highest: Floats

    @classmethod
    def of(cls, blocks: Iterable[Floats]) -> "Ranges":
        """Of all vectors in some blocks ``[n, D]``; at least one block."""
        lowest, highest = zip(*((block.min(axis=0), block.max(axis=0)) for block in blocks), strict=True)
        return cls(np.min(lowest, axis=0), np.max(highest, axis=0))

    @classmethod
    def from_json(cls, saved: dict[str, list[float]]) -> "Ranges":
        """What :meth:`to_json` returned."""
        return cls(np.array(saved["lowest"], np.float32), np.array(saved["highest"], np.float32))

    def to_json(self) -> dict[str, list[float]]:
        """The ranges, without loss."""
        return {"lowest": self.lowest.tolist(), "highest": self.highest.tolist()}

    @property
    def steps(self) -> Floats:
        """The width of a step of int8 in each dimension; 0 where all values are equal."""
        return (self.highest - self.lowest) / np.float32(STEPS)


def width(kind: str, dim: int) -> int:
    """Columns of the matrix that holds vectors of ``dim`` dimensions."""
    return -(-dim // 8) if kind in (BINARY, UBINARY) else dim


def shrink(vectors: Floats, kind: str, ranges: Ranges | None) -> NDArray[np.generic]:
    """Vectors ``[N, D]`` in fewer bytes: ``[N, D]``, or ``[N, E]`` for bits.

    Args:
        vectors: finite.
        kind: a key of :data:`TYPES`.
        ranges: of all vectors, for int8.
    """
    if kind in (FLOAT32, FLOAT16):
        return vectors.astype(TYPES[kind])
    if kind == INT8:
        assert ranges is not None
        steps = np.where(ranges.steps > 0, ranges.steps, np.float32(1.0))
        numbers: NDArray[np.float32] = np.clip(np.floor((vectors - ranges.lowest) / steps), 0, STEPS)
        return (numbers - OFFSET).astype(np.int8)
    bits = np.packbits(vectors > 0, axis=1)
    return bits if kind == UBINARY else (bits.astype(np.int16) - OFFSET).astype(np.int8)


def restore(stored: NDArray[np.generic], kind: str, ranges: Ranges | None, dim: int) -> Floats:
    """Vectors near those that were shrunk, float32 ``[N, D]``; -1 and 1 for bits.

    Args:
        stored: what :func:`shrink` returned.
        kind: as it was given there.
        ranges: as they were given there.
        dim: D.
    """
    if kind in (FLOAT32, FLOAT16):
        return stored.astype(np.float32)
    if kind == INT8:
        assert ranges is not None
        return (stored.astype(np.float32) + (OFFSET + MIDDLE)) * ranges.steps + ranges.lowest
    bits = stored if kind == UBINARY else (stored.astype(np.int16) + OFFSET).astype(np.uint8)
    ones = np.unpackbits(bits, axis=1, count=dim).astype(np.float32)  # type: ignore[arg-type]
    return 2 * ones - 1


class Shrunk(NamedTuple):
    """A matrix in fewer bytes, made block by block.

    Attributes:
        shape: of the whole matrix.
        blocks: its rows in order.
        needed: what :func:`restore` will need beside ``kind`` and the number of dimensions, as JSON.
    """

    shape: tuple[int, int]
    blocks: Iterator[NDArray[np.generic]]
    needed: dict[str, Any]


def shrink_blocks(matrix: Path, kind: str) -> Shrunk:
    """The rows of a float32 ``.npy`` file in fewer bytes, in bounded memory.

    Raises:
        UserError: while the blocks are made: a value is too large for float16.
    """
    whole = np.load(matrix, mmap_mode="r", allow_pickle=False)
    parts = [slice(start, stop) for start, stop in blocks(*whole.shape)]
    ranges = Ranges.of(whole[part] for part in parts) if kind == INT8 else None
    return Shrunk(
        shape=(len(whole), width(kind, whole.shape[1])),
        blocks=(_shrunk(whole[part], kind, ranges) for part in parts),
        needed={} if ranges is None else {RANGES: ranges.to_json()},
    )


def _shrunk(vectors: Floats, kind: str, ranges: Ranges | None) -> NDArray[np.generic]:
    with np.errstate(over="ignore"):
        small = shrink(vectors, kind, ranges)
    if kind == FLOAT16 and not np.isfinite(small).all():
        raise UserError("--vectors float16: holds no values above 65,504, and the model makes some; use int8")
    return small


def shrink_file(matrix: Path, output: Path, kind: str) -> dict[str, Any]:
    """Write a float32 ``.npy`` file in fewer bytes; the new file appears when it is whole.

    Returns:
        See :attr:`Shrunk.needed`.

    Raises:
        UserError: a value is too large for float16.
    """
    shrunk = shrink_blocks(matrix, kind)
    with atomic_write(output, "wb") as file:
        form = {"descr": np.dtype(TYPES[kind]).str, "fortran_order": False, "shape": shrunk.shape}
        np.lib.format.write_array_header_1_0(file, form)
        for block in shrunk.blocks:
            file.write(block.tobytes())
    return shrunk.needed


class SmallVectors:
    """A stored matrix that reads as float32 vectors, a block at a time.

    Args:
        stored: the matrix, in memory or memory-mapped.
        made_from: its description: ``vectors``, ``dim``, and ``ranges`` for int8.
    """

    def __init__(self, stored: NDArray[np.generic], made_from: dict[str, Any]) -> None:
        self._stored, self._kind, self._dim = stored, made_from["vectors"], made_from["dim"]
        self._ranges = Ranges.from_json(made_from[RANGES]) if RANGES in made_from else None
        self.shape: tuple[int, ...] = (len(stored), self._dim)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, rows: slice) -> Floats:
        return restore(self._stored[rows], self._kind, self._ranges, self._dim)
