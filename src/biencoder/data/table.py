"""All training examples as a table: one file holds the texts, others hold the facts about every row.

Sampling, masking and the audit only ask whether two texts are the same. A 64-bit hash (xxh3) of each text answers that.
Among a million distinct texts, the chance that any two share a hash is 3e-8; among a hundred million, 3e-4.

A table is built in one pass, and memory holds one block of rows meanwhile. A process that is killed leaves no file, so
the next one begins anew.
"""

import functools
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from biencoder.config.choices import STOP
from biencoder.data.files.records import BadRows, Example, find_files, read_examples
from biencoder.data.stored_numbers import BLOCK, StoredNumbers, kept, parts, stored, taken
from biencoder.data.stored_rows import store
from biencoder.data.text import text_hash
from biencoder.errors import UserError
from biencoder.files import room_for

_ROWS_HELD = 1 << 14  # of a table that is read, before their numbers are stored
_DTYPES = {"Q": np.uint64, "q": np.int64, "d": np.float64, "i": np.int32}  # of the kinds of Python's arrays
_KINDS = dict.fromkeys(("query", "positive", "negative", "other"), "Q")  # hashes
_KINDS |= {"positive_ends": "q", "negative_ends": "q", "similarity": "d", "data_set": "i"}


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
        values = stored((self.values[self.positions(part)[0]] for part in parts(lists)), self.values.dtype)
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
    def from_files(cls, paths: Sequence[Path], on_bad_row: str = STOP) -> "ExampleTable":
        """Read files and folders as one data set; see ``from_data_sets``."""
        return cls.from_data_sets([paths], on_bad_row)

    @classmethod
    def from_data_sets(
        cls, data_sets: Sequence[Sequence[Path]], on_bad_row: str = STOP, out_of: Sequence[float] | None = None
    ) -> "ExampleTable":
        """Read data sets into a table. An unnamed file in the temporary folder (``TMPDIR``) holds the texts.

        Args:
            data_sets: the files and folders of each.
            on_bad_row: ``"stop"`` or ``"skip"``, see ``iter_examples``.
            out_of: the highest score of two sentences in each; None for 1.

        Raises:
            UserError: a file cannot be read, a row is bad and ``on_bad_row`` is ``"stop"``, or no row of a data set is
                left.
        """
        found = [find_files(paths) for paths in data_sets]
        files = [path for inside in found for path in inside]
        bad = BadRows()
        columns = _Columns([number for number, inside in enumerate(found) for _ in inside])
        highest = [score for inside, score in zip(found, out_of or [1.0] * len(found), strict=True) for _ in inside]
        with room_for("the training data"):
            rows = store(_read(files, highest, on_bad_row, bad, columns))
        read = columns.finished()
        for number, paths in enumerate(data_sets):
            if not (read["data_set"] == number).any():
                first = f"; the first: {bad.messages[0]}" if bad.messages else ""
                raise UserError(f"no usable row in {', '.join(map(str, paths))}{first}")
        return cls(
            query_hashes=read["query"],
            positive_hashes=Ragged(read["positive"], read["positive_ends"]),
            negative_hashes=Ragged(read["negative"], read["negative_ends"]),
            similarities=read["similarity"],
            data_set=read["data_set"],
            files=tuple(map(str, files)),
            skipped=dict(bad.kinds),
            bad_rows=tuple(bad.messages),
            rows=rows,
            _other_hashes=read["other"],
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
        return stored((np.searchsorted(distinct, part) for part in parts(self.query_hashes)), np.int64)

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


class _Columns:
    """The columns of a table while its rows are read: the last rows are in memory."""

    def __init__(self, data_set_of_file: Sequence[int]) -> None:
        self._data_set_of_file = data_set_of_file
        self._new: dict[str, array[Any]] = {name: array(kind) for name, kind in _KINDS.items()}
        self._stored = {name: StoredNumbers(_DTYPES[kind]) for name, kind in _KINDS.items()}
        self._positives = self._negatives = 0
        self._new["positive_ends"].append(0)
        self._new["negative_ends"].append(0)

    def add(self, file: int, example: Example) -> None:
        new, digest = self._new, text_hash
        new["data_set"].append(self._data_set_of_file[file])
        new["query"].append(digest(example.query))
        new["positive"].extend(map(digest, example.positives))
        self._positives += len(example.positives)
        new["positive_ends"].append(self._positives)
        new["negative"].extend(map(digest, example.negatives))
        self._negatives += len(example.negatives)
        new["negative_ends"].append(self._negatives)
        other: tuple[Any, ...] = (example.positive_scores, example.negative_scores, example.prompt)
        if example.similarity is not None:
            other += (example.similarity,)
        new["other"].append(0 if other == (None, None, None) else digest(repr(other)))
        new["similarity"].append(math.nan if example.similarity is None else example.similarity)
        if len(new["query"]) == _ROWS_HELD:
            self._store()

    def finished(self) -> dict[str, NDArray[Any]]:
        """All of them by name."""
        self._store()
        return {name: numbers.finished() for name, numbers in self._stored.items()}

    def _store(self) -> None:
        for name, new in self._new.items():
            self._stored[name].extend(np.array(new))
            self._new[name] = array(new.typecode)


def _read(
    files: Sequence[Path], out_of: Sequence[float], on_bad_row: str, bad: BadRows, columns: _Columns
) -> Iterator[tuple[int, int, Example]]:
    """The examples of the files, each with the number of its file and its line; notes their numbers."""
    for number, path in enumerate(files):
        for line, example in read_examples(path, on_bad_row, bad, out_of=out_of[number]):
            columns.add(number, example)
            yield number, line, example
