"""Rows of training files as memory-mapped Arrow columns: a million rows are neither Python objects nor resident.

Beside the texts of a row lie the hashes by which texts are compared, so that whoever maps the rows need not make them.

Shapes: n rows, b rows in a block.
"""

import mmap
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from biencoder.data.files.records import Example
from biencoder.data.stored_numbers import taken
from biencoder.data.text import text_hash

BLOCK_ROWS = 1 << 13  # rows a record batch: every one but the last, so that a row's place is a division
_COLUMNS = ("query", "positives", "negatives", "positive_scores", "negative_scores", "prompt")
_FACTS = ("similarity", "file", "line")


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows by number, each with the file and the line that it came from.

    Attributes:
        blocks: pyarrow record batches in memory maps, see :func:`write`.
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
        block, row = divmod(int(self.places[i]), BLOCK_ROWS)
        return self.blocks[block], row


def write(examples: Iterable[tuple[int, int, Example]], file: IO[bytes]) -> int:
    """Write examples as an Arrow IPC file.

    Args:
        examples: number of the file, line, and the example.
        file: open for writing, and empty.

    Returns:
        How many there are.
    """
    import pyarrow as pa

    # 64-bit offsets: 8,192 rows with hundreds of long negatives outgrow 2 GiB.
    texts, scores = pa.large_list(pa.large_string()), pa.list_(pa.float64())
    hashes = {"query_hash": pa.uint64(), "other_hash": pa.uint64()}
    hashes |= dict.fromkeys(("positive_hashes", "negative_hashes"), pa.large_list(pa.uint64()))
    kinds = (pa.large_string(), texts, texts, scores, scores, pa.large_string(), pa.float64(), pa.int32(), pa.int64())
    schema = pa.schema(dict(zip(_COLUMNS + _FACTS, kinds, strict=True)) | hashes)
    written = 0
    with pa.ipc.new_file(file, schema) as writer:
        for rows, hashed in _blocks(examples):
            columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
            columns += [pa.array(np.array(each)) for each in (hashed.query, hashed.other)]
            for lists in (hashed.positives, hashed.negatives):
                columns.append(pa.LargeListArray.from_arrays(np.array(lists.ends), np.array(lists.values)))
            writer.write_batch(pa.record_batch(columns, schema=schema))
            written += len(rows)
    return written


class _Lists:
    """Lists of hashes, end to end."""

    def __init__(self) -> None:
        self.values, self.ends = array("Q"), array("q", [0])

    def add(self, texts: Iterable[str]) -> None:
        self.values.extend(map(text_hash, texts))
        self.ends.append(len(self.values))


class _Hashes:
    """Hashes of a block's rows. As objects for each row, they would keep Python's garbage collector busy."""

    def __init__(self) -> None:
        self.query, self.other = array("Q"), array("Q")
        self.positives, self.negatives = _Lists(), _Lists()

    def add(self, e: Example) -> None:
        self.query.append(text_hash(e.query))
        self.positives.add(e.positives)
        self.negatives.add(e.negatives)
        other: tuple[Any, ...] = (e.positive_scores, e.negative_scores, e.prompt)
        if e.similarity is not None:
            other += (e.similarity,)
        self.other.append(0 if other == (None, None, None) else text_hash(repr(other)))


def _blocks(examples: Iterable[tuple[int, int, Example]]) -> Iterator[tuple[list[tuple[Any, ...]], _Hashes]]:
    """The rows of each block, as they stand in its columns, and their hashes."""
    rows: list[tuple[Any, ...]] = []
    hashes = _Hashes()
    for file, line, e in examples:
        scores = (e.positive_scores, e.negative_scores)
        rows.append((e.query, e.positives, e.negatives, *scores, e.prompt, e.similarity, file, line))
        hashes.add(e)
        if len(rows) == BLOCK_ROWS:
            yield rows, hashes
            rows, hashes = [], _Hashes()
    if rows:
        yield rows, hashes


def mapped(file: IO[bytes]) -> tuple[Any, ...]:
    """The record batches of an Arrow IPC file, in a memory map that outlives the file's name and handle.

    Raises:
        pyarrow.ArrowException, ValueError: it is no such file, or an empty one.
    """
    import pyarrow as pa

    file.flush()
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(view)))
    return tuple(reader.get_batch(i) for i in range(reader.num_record_batches))
