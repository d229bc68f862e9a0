"""Rows of training files as memory-mapped Arrow columns: a million rows are neither Python objects nor resident."""

import mmap
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from biencoder.data.files.records import Example
from biencoder.data.stored_numbers import counted, taken

_BLOCK_ROWS = 1 << 13  # rows a record batch: every one but the last, so that a row's place is a division
_COLUMNS = ("query", "positives", "negatives", "positive_scores", "negative_scores", "prompt")


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows by number, each with the file and the line that it came from; make them with :func:`store`.

    Attributes:
        blocks: pyarrow record batches in the memory map.
        places: int64 ``[n]``, the place of each row in the blocks.
    """

    blocks: tuple[Any, ...]
    places: NDArray[np.int64]

    def __getitem__(self, i: int) -> Example:
        columns, row = self._find(i)
        query, positives, negatives, positive_scores, negative_scores, prompt = (
            columns[name][row].as_py() for name in _COLUMNS
        )
        return Example(
            query,
            tuple(positives),
            tuple(negatives),
            None if positive_scores is None else tuple(positive_scores),
            None if negative_scores is None else tuple(negative_scores),
            prompt,
        )

    def origin(self, i: int) -> tuple[int, int]:
        """The number of the file that row ``i`` came from, and the line there (Parquet: the row's number)."""
        columns, row = self._find(i)
        return columns["file"][row].as_py(), columns["line"][row].as_py()

    def take(self, rows: NDArray[np.int64]) -> "StoredRows":
        """The given rows in the given order."""
        return StoredRows(self.blocks, taken(self.places, rows))

    def _find(self, i: int) -> tuple[Any, int]:
        block, row = divmod(int(self.places[i]), _BLOCK_ROWS)
        return self.blocks[block], row


def store(examples: Iterable[tuple[int, int, Example]]) -> StoredRows:
    """Write examples to an unnamed file in the temporary folder (``TMPDIR``); all but their similarity is kept.

    Args:
        examples: number of the file, line, and the example.
    """
    with tempfile.TemporaryFile(prefix="biencoder-") as file:
        rows = _write(examples, file)
        return StoredRows(_map(file) if rows else (), counted(rows))


def _write(examples: Iterable[tuple[int, int, Example]], file: IO[bytes]) -> int:
    """Write the examples to ``file`` as an Arrow IPC file; return how many there are."""
    import pyarrow as pa

    # 64-bit offsets: 8,192 rows with hundreds of long negatives outgrow 2 GiB.
    texts, scores = pa.large_list(pa.large_string()), pa.list_(pa.float64())
    types = (pa.large_string(), texts, texts, scores, scores, pa.large_string(), pa.int32(), pa.int64())
    schema = pa.schema(list(zip((*_COLUMNS, "file", "line"), types, strict=True)))
    rows: list[tuple[Any, ...]] = []
    written = 0
    with pa.ipc.new_file(file, schema) as writer:

        def flush() -> None:
            columns = zip(*rows, strict=True)
            arrays = [pa.array(column, type) for column, type in zip(columns, types, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            rows.clear()

        for number, line, e in examples:
            rows.append(
                (e.query, e.positives, e.negatives, e.positive_scores, e.negative_scores, e.prompt, number, line)
            )
            written += 1
            if len(rows) == _BLOCK_ROWS:
                flush()
        if rows:
            flush()
    return written


def _map(file: IO[bytes]) -> tuple[Any, ...]:
    """The record batches of an Arrow IPC file, in a memory map that outlives the file's name and handle."""
    import pyarrow as pa

    file.flush()
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(view)))
    return tuple(reader.get_batch(i) for i in range(reader.num_record_batches))
