"""All training examples as a table: one file holds the texts, others hold the facts about every row.

Sampling, masking and the audit only ask whether two texts are the same. A 64-bit hash (xxh3) of each text answers that.
Among a million distinct texts, the chance that any two share a hash is 3e-8; among a hundred million, 3e-4.

A table is built in one pass, and memory holds one block of rows meanwhile. A process that is killed leaves the parts
that it had finished, and the next one goes on after them (:mod:`~biencoder.data.table_parts`).
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from biencoder.config.choices import STOP
from biencoder.data.files.records import BadRows, Example, find_files, read_examples
from biencoder.data.stored_numbers import BLOCK, StoredNumbers, counted, kept, pieces, stored, taken
from biencoder.data.stored_rows import StoredRows
from biencoder.data.table_parts import Parts, Reached
from biencoder.errors import UserError
from biencoder.files import room_for


@dataclass(frozen=True, eq=False)
class Ragged:
    """Lists of unequal length, end to end.

    Attributes:
        values: uint64 ``[total]``.
        offsets: int64 ``[n + 1]``; list i is ``values[offsets[i]:offsets[i + 1]]``.
    """

    values: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The length of each list, int64 ``[n]``."""
        return np.diff(self.offsets)

    def lengths_of(self, lists: NDArray[np.int64]) -> NDArray[np.int64]:
        """The length of each of the given lists."""
        return self.offsets[lists + 1] - self.offsets[lists]

    def owners(self) -> NDArray[np.int64]:
        """The list that each value belongs to, int64 ``[total]``."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def positions(self, lists: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the values of ``lists`` stand: indices into ``values`` end to end, and offsets as above."""
        starts, lengths = self.offsets[lists], self.lengths_of(lists)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths), offsets

    def take(self, lists: NDArray[np.int64]) -> "Ragged":
        """The given lists, in the given order."""
        values = stored((self.values[self.positions(part)[0]] for part in pieces(lists)), self.values.dtype)
        return Ragged(values, offsets_of(self.lengths_of(lists)))


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where lists of these lengths begin, end to end; then where the last one ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return kept(offsets)


class Rows(Protocol):
    """Rows by number."""

    def __getitem__(self, i: int) -> Example:
        """The texts, scores and prompt of row ``i``."""

    def origin(self, i: int) -> tuple[int, int]:
        """The number of the file that row ``i`` came from, and the line there (Parquet: the row's number)."""

    def take(self, rows: NDArray[np.int64]) -> "Rows":
        """The given rows in the given order."""


@dataclass(frozen=True, eq=False, repr=False)
class ExampleTable:
    """Training examples by number, in the order of the files; make one with ``from_files``.

    Attributes:
        query_hashes: uint64 ``[n]``, the xxh3 of each query's exact text.
        positive_hashes: the same of each row's positives.
        negative_hashes: the same of each row's hard negatives.
        files: the files that were read.
        similarities: float64 ``[n]``, how similar query and positive are if the row says so, else NaN.
        data_set: int32 ``[n]``, the number of each row's data set.
        skipped: how many bad rows of each kind were left out.
        bad_rows: messages on the first 20 bad rows.
        rows: where the table reads its rows; the hashes are of their texts.
        empty_negatives: how many entries among the negatives were empty; they were left out alone.
    """

    query_hashes: NDArray[np.uint64]
    positive_hashes: Ragged
    negative_hashes: Ragged
    similarities: NDArray[np.float64]
    data_set: NDArray[np.int32]
    files: tuple[str, ...]
    skipped: Mapping[str, int]
    bad_rows: tuple[str, ...]
    rows: Rows
    _other_hashes: NDArray[np.uint64]  # scores and prompt of each row; 0 for a row without any
    empty_negatives: int = 0

    @classmethod
    def from_files(cls, paths: Sequence[Path], on_bad_row: str = STOP, parts: Parts | None = None) -> "ExampleTable":
        """Read files and folders as one data set; see ``from_data_sets``."""
        return cls.from_data_sets([paths], on_bad_row, parts=parts)

    @classmethod
    def from_data_sets(
        cls,
        data_sets: Sequence[Sequence[Path]],
        on_bad_row: str = STOP,
        out_of: Sequence[float] | None = None,
        *,
        parts: Parts | None = None,
    ) -> "ExampleTable":
        """Read data sets into a table. Files in the temporary folder (``TMPDIR``) hold the texts.

        Args:
            data_sets: the files and folders of each.
            on_bad_row: ``"stop"`` or ``"skip"``, see ``iter_examples``.
            out_of: the highest score of two sentences in each; None for 1.
            parts: what others may have stored of this table, and may find; None for nothing. The caller removes them.

        Raises:
            UserError: a file cannot be read, a row is bad and ``on_bad_row`` is ``"stop"``, or no row of a data set is
                left.
        """
        found = [find_files(paths) for paths in data_sets]
        files = [path for inside in found for path in inside]
        data_set_of_file = [number for number, inside in enumerate(found) for _ in inside]
        highest = [score for inside, score in zip(found, out_of or [1.0] * len(found), strict=True) for _ in inside]
        lying = Parts.of(data_sets, on_bad_row, out_of) if parts is None else parts
        try:
            with room_for("the training data"):
                blocks, bad = _read(files, highest, on_bad_row, lying)
            read = _numbers(blocks, np.array(data_set_of_file, np.int32))
            for number, paths in enumerate(data_sets):
                if not (read.data_set == number).any():
                    first = f"; the first: {bad.messages[0]}" if bad.messages else ""
                    raise UserError(f"no usable row in {', '.join(map(str, paths))}{first}")
        except UserError:
            lying.forget()  # who mends the data reads other data
            raise
        if parts is None:
            lying.forget()
        return cls(
            query_hashes=read.query,
            positive_hashes=read.positives,
            negative_hashes=read.negatives,
            similarities=read.similarity,
            data_set=read.data_set,
            files=tuple(map(str, files)),
            skipped=dict(bad.kinds),
            bad_rows=tuple(bad.messages),
            rows=StoredRows(blocks, counted(len(read.query))),
            _other_hashes=read.other,
            empty_negatives=bad.empty_negatives,
        )

    def __len__(self) -> int:
        return len(self.query_hashes)

    def __getitem__(self, i: int) -> Example:
        example, similarity = self.rows[i], float(self.similarities[i])
        return example if math.isnan(similarity) else replace(example, similarity=similarity)

    def passage(self, place: int) -> str:
        """The text at a place in ``positive_hashes.values``, or counted on from there in ``negative_hashes.values``."""
        negative = place - len(self.positive_hashes.values)
        lists, place = (self.positive_hashes, place) if negative < 0 else (self.negative_hashes, negative)
        row = int(np.searchsorted(lists.offsets, place, side="right")) - 1
        example = self[row]
        return (example.positives if negative < 0 else example.negatives)[place - int(lists.offsets[row])]

    def location(self, i: int) -> str:
        """Where row ``i`` stands: ``path:line`` (Parquet: the row's number)."""
        file, line = self.rows.origin(i)
        return f"{self.files[file]}:{line}"

    def select(self, rows: NDArray[np.int64]) -> "ExampleTable":
        """The given rows in the given order, as a table on the same texts."""
        return ExampleTable(
            taken(self.query_hashes, rows),
            self.positive_hashes.take(rows),
            self.negative_hashes.take(rows),
            taken(self.similarities, rows),
            taken(self.data_set, rows),
            self.files,
            self.skipped,
            self.bad_rows,
            self.rows.take(rows),
            taken(self._other_hashes, rows),
            self.empty_negatives,
        )

    @functools.cached_property
    def max_negatives(self) -> int:
        """The most hard negatives that a row has."""
        return int(self.negative_hashes.lengths.max(initial=0))

    @functools.cached_property
    def query_numbers(self) -> NDArray[np.int64]:
        """int64 ``[n]``: rows with the same query text have the same number; from 0, without gaps."""
        distinct = np.unique(self.query_hashes)
        return stored((np.searchsorted(distinct, part) for part in pieces(self.query_hashes)), np.int64)

    @functools.cached_property
    def answers(self) -> Ragged:
        """The hashes of the passages known to answer each query number, in all its rows; sorted, each once."""
        passages, counts = StoredNumbers(np.uint64), StoredNumbers(np.int64)
        for rows in self._rows_by_query():
            numbers = self.query_numbers[rows]
            says_answers = np.isnan(self.similarities[rows])  # a row that says how similar two texts are says no more
            known = self.positive_hashes.take(rows[says_answers])
            owner = np.repeat(numbers[says_answers] - numbers[0], known.lengths)
            order = np.lexsort((known.values, owner))
            owner, passage = owner[order], known.values[order]
            is_first = np.ones(len(owner), dtype=np.bool_)
            is_first[1:] = (owner[1:] != owner[:-1]) | (passage[1:] != passage[:-1])
            passages.extend(passage[is_first])
            counts.extend(np.bincount(owner[is_first], minlength=int(numbers[-1] - numbers[0]) + 1))
        return Ragged(passages.finished(), offsets_of(counts.finished()))

    def _rows_by_query(self) -> Iterator[NDArray[np.int64]]:
        """All rows in parts, by the number of their query; the rows of a query are in one part."""
        order = np.argsort(self.query_numbers, kind="stable")
        numbers = taken(self.query_numbers, order)
        start = 0
        while start < len(order):
            last = numbers[min(start + BLOCK, len(order)) - 1]
            stop = int(np.searchsorted(numbers, last, side="right"))
            yield order[start:stop]
            start = stop

    @functools.cached_property
    def fingerprint(self) -> str:
        """32 hex digits over the content in order; file names, formats and compression do not matter."""
        digest = xxhash.xxh3_128()
        many = (self.data_set,) if self.data_set.any() else ()
        for part in (
            self.query_hashes,
            self.positive_hashes.values,
            self.positive_hashes.offsets,
            self.negative_hashes.values,
            self.negative_hashes.offsets,
            self._other_hashes,
            *many,
        ):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


class _Numbers(NamedTuple):
    """The columns of a table that are no texts."""

    query: NDArray[np.uint64]
    positives: Ragged
    negatives: Ragged
    similarity: NDArray[np.float64]
    data_set: NDArray[np.int32]
    other: NDArray[np.uint64]


def _numbers(blocks: Sequence[Any], data_set_of_file: NDArray[np.int32]) -> _Numbers:
    """The numbers of all blocks, end to end."""

    def column(name: str, dtype: Any) -> NDArray[Any]:
        return stored((block[name].to_numpy(zero_copy_only=False) for block in blocks), dtype)

    def lists(name: str) -> Ragged:
        values = stored((block[name].flatten().to_numpy() for block in blocks), np.uint64)
        return Ragged(
            values, offsets_of(stored((block[name].value_lengths().to_numpy() for block in blocks), np.int64))
        )

    return _Numbers(
        query=column("query_hash", np.uint64),
        positives=lists("positive_hashes"),
        negatives=lists("negative_hashes"),
        similarity=column("similarity", np.float64),
        data_set=stored((data_set_of_file[block["file"].to_numpy()] for block in blocks), np.int32),
        other=column("other_hash", np.uint64),
    )


def _read(
    files: Sequence[Path], out_of: Sequence[float], on_bad_row: str, parts: Parts
) -> tuple[tuple[Any, ...], BadRows]:
    """All rows of the files, as record batches, and what was left out."""
    finished = list(parts.finished())
    blocks = [block for found, _ in finished for block in found]
    number, reached = len(finished), finished[-1][1] if finished else Reached()
    examples = _examples(files, out_of, on_bad_row, replace(reached))
    while not reached.is_end:
        blocks += parts.add(number, examples, reached)
        number += 1
    return tuple(blocks), reached.bad


def _examples(
    files: Sequence[Path], out_of: Sequence[float], on_bad_row: str, after: Reached
) -> Iterator[tuple[int, int, Example]]:
    """The examples of the files after a place, each with the number of its file and its line; counts the bad rows."""
    for number, path in enumerate(files):
        if number < after.file:
            continue
        first = after.line if number == after.file else 0
        for line, example in read_examples(path, on_bad_row, after.bad, out_of=out_of[number], after=first):
            yield number, line, example
