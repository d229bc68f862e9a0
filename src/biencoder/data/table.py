"""All training examples as a table: a file holds the texts, and memory holds the facts about every row.

Sampling, masking and the audit only ask whether two texts are the same. A 64-bit hash (xxh3) of each text answers that.
Among a million distinct texts, the chance that any two share a hash is 3e-8.
"""

import functools
import math
import tempfile
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
from biencoder.data.stored_rows import store
from biencoder.data.text import text_hash
from biencoder.errors import UserError


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
        positions, offsets = self.positions(lists)
        return Ragged(self.values[positions], offsets)


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
        hashes = _Hashes(len(files))
        highest = [score for inside, score in zip(found, out_of or [1.0] * len(found), strict=True) for _ in inside]
        try:
            rows = store(_read(files, highest, on_bad_row, bad, hashes))
        except OSError as error:
            raise UserError(
                f"cannot store the training data in {tempfile.gettempdir()}: {error.strerror or error}; "
                "set TMPDIR to a folder with more room"
            ) from error
        ends = np.cumsum([len(inside) for inside in found])
        data_set_of_file = np.searchsorted(ends, np.arange(len(files)), side="right").astype(np.int32)
        data_set = np.repeat(data_set_of_file, hashes.rows_of_file)
        for number, paths in enumerate(data_sets):
            if not (data_set == number).any():
                first = f"; the first: {bad.messages[0]}" if bad.messages else ""
                raise UserError(f"no usable row in {', '.join(map(str, paths))}{first}")
        names = tuple(str(path) for path in files)
        skipped, messages = dict(bad.kinds), tuple(bad.messages)
        arrays = hashes.arrays()
        return cls(*arrays, data_set, names, skipped, messages, rows, hashes.others(), bad.empty_negatives)

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
            self.query_hashes[rows],
            self.positive_hashes.take(rows),
            self.negative_hashes.take(rows),
            self.similarities[rows],
            self.data_set[rows],
            self.files,
            self.skipped,
            self.bad_rows,
            self.rows.take(rows),
            self._other_hashes[rows],
            self.empty_negatives,
        )

    @functools.cached_property
    def max_negatives(self) -> int:
        """The most hard negatives that a row has."""
        return int(self.negative_hashes.lengths.max(initial=0))

    @functools.cached_property
    def query_numbers(self) -> NDArray[np.int64]:
        """int64 ``[n]``: rows with the same query text have the same number; from 0, without gaps."""
        numbers: NDArray[np.int64] = np.unique(self.query_hashes, return_inverse=True)[1]
        return numbers

    @functools.cached_property
    def answers(self) -> Ragged:
        """The hashes of the passages known to answer each query number, in all its rows; sorted, each once."""
        owners = self.positive_hashes.owners()
        is_answer = np.isnan(self.similarities[owners])  # a row that says how similar two texts are says no more
        owner, passage = self.query_numbers[owners[is_answer]], self.positive_hashes.values[is_answer]
        order = np.lexsort((passage, owner))
        owner, passage = owner[order], passage[order]
        is_first = np.ones(len(owner), dtype=np.bool_)
        is_first[1:] = (owner[1:] != owner[:-1]) | (passage[1:] != passage[:-1])
        owner, passage = owner[is_first], passage[is_first]
        return Ragged(passage, np.searchsorted(owner, np.arange(self.query_numbers.max(initial=-1) + 2)))

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


class _Hashes:
    """The hashes of the texts as they are read."""

    def __init__(self, files: int) -> None:
        self.rows_of_file = [0] * files
        self.query, self.positive, self.negative, self.other = array("Q"), array("Q"), array("Q"), array("Q")
        self.positive_ends, self.negative_ends = array("q", [0]), array("q", [0])
        self.similarity = array("d")

    def add(self, file: int, example: Example) -> None:
        self.rows_of_file[file] += 1
        digest = text_hash
        self.query.append(digest(example.query))
        self.positive.extend(map(digest, example.positives))
        self.positive_ends.append(len(self.positive))
        self.negative.extend(map(digest, example.negatives))
        self.negative_ends.append(len(self.negative))
        other: tuple[Any, ...] = (example.positive_scores, example.negative_scores, example.prompt)
        if example.similarity is not None:
            other += (example.similarity,)
        self.other.append(0 if other == (None, None, None) else digest(repr(other)))
        self.similarity.append(math.nan if example.similarity is None else example.similarity)

    def arrays(self) -> tuple[NDArray[np.uint64], Ragged, Ragged, NDArray[np.float64]]:
        return (
            _numpy(self.query, np.uint64),
            Ragged(_numpy(self.positive, np.uint64), _numpy(self.positive_ends, np.int64)),
            Ragged(_numpy(self.negative, np.uint64), _numpy(self.negative_ends, np.int64)),
            _numpy(self.similarity, np.float64),
        )

    def others(self) -> NDArray[np.uint64]:
        return _numpy(self.other, np.uint64)


def _numpy(values: "array[int] | array[float]", dtype: type) -> NDArray[Any]:
    return np.frombuffer(values, dtype=dtype) if values else np.empty(0, dtype=dtype)


def _read(
    files: Sequence[Path], out_of: Sequence[float], on_bad_row: str, bad: BadRows, hashes: _Hashes
) -> Iterator[tuple[int, int, Example]]:
    """The examples of the files, each with the number of its file and its line; notes their hashes."""
    for number, path in enumerate(files):
        for line, example in read_examples(path, on_bad_row, bad, out_of=out_of[number]):
            hashes.add(number, example)
            yield number, line, example
