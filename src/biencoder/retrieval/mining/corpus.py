"""The texts to mine negatives from: distinct, numbered and on disk, with their vectors in a memory-mapped matrix.

Texts that differ only in white space and case are one candidate: the first text. 64-bit hashes (xxh3) stand for texts,
as in `biencoder.data.table`.
"""

import os
import tempfile
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biencoder.data.random_bits import splitmix64
from biencoder.data.stored_numbers import BLOCK, StoredNumbers
from biencoder.data.table import ExampleTable
from biencoder.data.text import fold, text_hash
from biencoder.errors import UserError
from biencoder.files import room_for
from biencoder.model.representations.ragged import Vectors
from biencoder.retrieval.text_encoder import Advance, TextEncoder, finite, shifted
from biencoder.retrieval.vectors.mapped import map_vectors

ENCODED_AT_ONCE = 16_384  # passages between two writes to the matrix; each quarter is sorted by length

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]


class TextFile:
    """Texts by number, in an unnamed file in the folder for temporary files."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="biencoder-")  # noqa: SIM115 (it lives as long as this object)
        self._ends = array("q", [0])
        self._flushed = True

    def append(self, text: str) -> None:
        """Add a text; its number is the current length."""
        encoded = text.encode()
        self._file.write(encoded)
        self._ends.append(self._ends[-1] + len(encoded))
        self._flushed = False

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        if not self._flushed:
            self._file.flush()
            self._flushed = True
        start, stop = self._ends[number], self._ends[number + 1]
        return os.pread(self._file.fileno(), stop - start, start).decode()


class Lookup:
    """Looks up numbers by hash; for equal hashes, the first number."""

    def __init__(self, hashes: Hashes) -> None:
        self._sorted, self._number = np.unique(hashes, return_index=True)

    def find(self, hashes: Hashes) -> Indices:
        """The number of each hash, or -1."""
        if not len(self._sorted):
            return np.full(len(hashes), -1)
        place = np.searchsorted(self._sorted, hashes).clip(max=len(self._sorted) - 1)
        return np.where(self._sorted[place] == hashes, self._number[place], -1)


@dataclass(frozen=True, eq=False)
class FoldedTable:
    """Hashes of a table's folded texts.

    Attributes:
        query: uint64 ``[n]``.
        positives: uint64, in the order of ``table.positive_hashes.values``.
        negatives: the same for the hard negatives.
        prompted_query: uint64 ``[n]``, of the exact query with its row's own prompt; equal hashes mean equal vectors.
    """

    query: Hashes
    positives: Hashes
    negatives: Hashes
    prompted_query: Hashes


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidates, and the other texts that mining needs vectors for; make them with `gather`.

    Attributes:
        searchable: texts with a number below this are the candidates.
        source_rows: texts that the candidates were chosen from; blank ones do not count.
        positives: int64, the number of each text of ``table.positive_hashes.values``.
        negatives: the same for the hard negatives; -1 for texts that mining does not need.
        table: hashes of the table's folded texts.
        by_folded: candidates by folded hash.
    """

    searchable: int
    source_rows: int
    positives: Indices
    negatives: Indices
    table: FoldedTable
    by_folded: Lookup
    _texts: TextFile
    _entries: Indices  # place of each numbered text in the file

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> str:
        return self._texts[int(self._entries[number])]

    def vectors(self, encoder: TextEncoder, progress: Advance | None = None) -> Vectors:
        """What the encoder compares of all texts as passages, memory-mapped from an unnamed temporary file.

        Raises:
            UserError: a vector is not finite, or the folder for temporary files is full.
        """

        def encoded(start: int) -> Vectors:
            texts = [self[number] for number in range(start, min(start + ENCODED_AT_ONCE, len(self)))]
            return finite(encoder.represent_passages(texts, shifted(progress, start)), "passage", start)

        return map_vectors(map(encoded, range(0, len(self), ENCODED_AT_ONCE)), encoder.dim)


def gather(table: ExampleTable, corpus: Iterable[str] | None, *, with_negatives: bool) -> Candidates:
    """Number the distinct candidates, which are the texts of ``corpus``, and the other texts that mining needs.

    If ``corpus`` is None, the candidates are the table's passages. Memory holds neither the texts nor an object for
    each text. Blank texts are left out.

    Args:
        table: the training data.
        corpus: texts to search for negatives; None for the table's own passages.
        with_negatives: whether mining also needs vectors of the table's own hard negatives.

    Raises:
        UserError: there is no text, or the folder for temporary files is full.
    """
    texts, hashes = TextFile(), _EntryHashes()
    with room_for("the passages"):
        for text in corpus or ():
            if text and not text.isspace():
                texts.append(text)
                hashes.add(text)
        found = len(texts)
        folded_table = _read_table(table, texts, hashes, from_corpus=corpus is not None, with_negatives=with_negatives)
    exact, folded = hashes.arrays()
    source = len(texts) if corpus is None else found
    if source == 0:
        raise UserError("the corpus holds no text to mine negatives from")
    candidates = _first_of_each(folded[:source])
    needed = [table.positive_hashes.values, table.negative_hashes.values][: 1 + with_negatives]
    others = _first_of_each(exact)
    others = others[np.isin(exact[others], np.concatenate(needed)) & ~np.isin(exact[others], exact[candidates])]
    entries = np.concatenate([candidates, others])
    by_exact = Lookup(exact[entries])
    passages = len(folded_table.positives) + len(folded_table.negatives)
    return Candidates(
        searchable=len(candidates),
        source_rows=passages if corpus is None else source,
        positives=by_exact.find(table.positive_hashes.values),
        negatives=by_exact.find(table.negative_hashes.values),
        table=folded_table,
        by_folded=Lookup(folded[candidates]),
        _texts=texts,
        _entries=entries,
    )


def contradicted(table: ExampleTable, folded: FoldedTable) -> NDArray[np.bool_]:
    """Which hard negatives are a positive of their query in some row, bool in the order of the table's negatives."""
    query = splitmix64(folded.query)
    positives = query[table.positive_hashes.owners()] ^ folded.positives
    negatives = query[table.negative_hashes.owners()] ^ folded.negatives
    return np.isin(negatives, positives)


class _EntryHashes:
    """Hashes of the texts in a file, exact and folded."""

    def __init__(self) -> None:
        self._exact, self._folded = _Hashes(), _Hashes()

    def add(self, text: str) -> None:
        self._exact.add(text)
        self._folded.add(fold(text))

    def arrays(self) -> tuple[Hashes, Hashes]:
        return self._exact.finished(), self._folded.finished()


class _Hashes:
    """Hashes of texts that come one after the other; memory holds the last of them."""

    def __init__(self) -> None:
        self._new, self._stored = array("Q"), StoredNumbers(np.uint64)

    def add(self, text: str) -> None:
        self._new.append(text_hash(text))
        if len(self._new) == BLOCK:
            self._store()

    def finished(self) -> Hashes:
        self._store()
        return self._stored.finished()

    def _store(self) -> None:
        self._stored.extend(np.array(self._new, np.uint64))
        self._new = array("Q")


def _read_table(
    table: ExampleTable, texts: TextFile, hashes: _EntryHashes, *, from_corpus: bool, with_negatives: bool
) -> FoldedTable:
    """Fold the table's texts, and append candidates and needed texts that are not in ``texts`` yet."""
    new_positive, new_negative = _new(table, hashes.arrays()[0], with_negatives=with_negatives or not from_corpus)
    query, positives, negatives, prompted = (_Hashes() for _ in range(4))
    for i in range(len(table)):
        example = table[i]
        query.add(fold(example.query))
        prompted.add(repr((example.prompt, example.query)))
        for folded, passages, new, offsets in (
            (positives, example.positives, new_positive, table.positive_hashes.offsets),
            (negatives, example.negatives, new_negative, table.negative_hashes.offsets),
        ):
            for place, text in enumerate(passages, int(offsets[i])):
                folded.add(fold(text))
                if new[place]:
                    texts.append(text)
                    hashes.add(text)
    return FoldedTable(*(column.finished() for column in (query, positives, negatives, prompted)))


def _new(table: ExampleTable, known: Hashes, *, with_negatives: bool) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which positives and which negatives are the first of their text in the order of the rows, and not ``known``."""
    positives, negatives = table.positive_hashes, table.negative_hashes
    values = np.concatenate([positives.values, negatives.values])
    order = np.argsort(np.concatenate([2 * positives.owners(), 2 * negatives.owners() + 1]), kind="stable")
    if not with_negatives:
        order = order[order < len(positives.values)]
    new = np.zeros(len(values), np.bool_)
    new[order[np.unique(values[order], return_index=True)[1]]] = True
    new &= ~np.isin(values, known)
    return new[: len(positives.values)], new[len(positives.values) :]


def _first_of_each(hashes: Hashes) -> Indices:
    """The first place of each distinct hash, ascending."""
    return np.sort(np.unique(hashes, return_index=True)[1])
