"""A matrix of vectors while it is made: the rows done so far, and a record of them, so that a killed run goes on.

``OUT.partial`` holds the rows, ``OUT.partial.json`` says how many they are and what they are made from. Where texts
have a vector for each token, ``OUT.partial.lengths`` counts those of each text.
"""

import io
import logging
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from biencoder.files import beside, read_json, write_json
from biencoder.model.representations.ragged import Ragged, Vectors

logger = logging.getLogger(__name__)

TOKENS = "tokens"  # in what a matrix is made from: its rows are vectors of tokens
COUNT = np.dtype("<i4")  # of the vectors of a text


class Unfinished:
    """The rows done so far, of which those of an earlier run are kept if they are made from the same.

    Args:
        file: ``OUT.partial``, open and locked.
        output: ``OUT``.
        source: what the matrix is made from: ``rows`` (texts), ``dim``, and so on.

    Attributes:
        texts: how many are done.
        vectors: how many rows that is.
    """

    def __init__(self, file: IO[bytes], output: Path, source: dict[str, Any]) -> None:
        self._file, self._source = file, source
        self._partial, self._record = beside(output, ".partial"), beside(output, ".partial.json")
        self._lengths = beside(output, ".partial.lengths")
        self._row_bytes = 4 * source["dim"]
        header = _header(source["rows"], source["dim"])
        self.texts, self.vectors = self._done(len(header))
        if self.texts == 0:
            self._record.unlink(missing_ok=True)  # first: a record must never describe another run's rows
        file.write(header)
        file.truncate(len(header) + self._row_bytes * self.vectors)
        file.seek(0, os.SEEK_END)
        if TOKENS in source:
            with self._lengths.open("ab") as lengths:
                lengths.truncate(COUNT.itemsize * self.texts)

    def append(self, made: Vectors) -> None:
        """Add finite vectors of some texts; after this, a kill does not lose them."""
        rows: np.ndarray = made.vectors if isinstance(made, Ragged) else made
        if isinstance(made, Ragged):
            with self._lengths.open("ab") as lengths:
                lengths.write(np.diff(made.starts).astype(COUNT).tobytes())
                lengths.flush()
                os.fsync(lengths.fileno())
        self._file.write(rows.astype("<f4").tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.texts, self.vectors = self.texts + len(made), self.vectors + len(rows)
        write_json(self._record, {"rows_done": self.texts, "vectors_done": self.vectors, "source": self._source})

    def finish(self) -> None:
        """Let the header say how many vectors of tokens there are, which nobody knew before."""
        if TOKENS not in self._source:
            return
        self._file.seek(0)
        self._file.write(_header(self.vectors, self._source["dim"]))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _done(self, header: int) -> tuple[int, int]:
        """How many texts and how many vectors of an earlier run can be kept."""
        earlier, source = read_json(self._record), self._source
        if earlier is None or not self._partial.is_file():
            return 0, 0
        if earlier.get("source") != source:
            names = {"texts": "the texts", "model": "the model or its settings", "kind": "the kind of text"}
            was = earlier.get("source") or {}
            changed = [name for key, name in names.items() if was.get(key) != source[key]]
            logger.warning("%s belongs to another run (%s differ); starting over", self._partial, " and ".join(changed))
            return 0, 0
        texts = int(earlier["rows_done"])
        vectors = int(earlier.get("vectors_done", texts))
        is_short = self._partial.stat().st_size < header + self._row_bytes * vectors
        if is_short or (TOKENS in source and _size(self._lengths) < COUNT.itemsize * texts):
            logger.warning("%s is shorter than its record says; starting over", self._partial)
            return 0, 0
        logger.info(
            "continuing after %s of %s texts, which are in %s", f"{texts:,}", f"{source['rows']:,}", self._partial
        )
        return texts, vectors


def lengths_so_far(output: Path) -> np.ndarray:
    """The vectors of each text, of an unfinished matrix of vectors of tokens: int32 ``[N]``."""
    return np.fromfile(beside(output, ".partial.lengths"), COUNT)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _header(rows: int, dim: int) -> bytes:
    """The same number of bytes for any number of rows."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)})
    return file.getvalue()
