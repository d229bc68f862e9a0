"""Pairs on their way to the output. Their texts are in an unnamed file; memory holds a few numbers for each pair."""

import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import orjson
from numpy.typing import NDArray

from biencoder.data.random_bits import splitmix64
from biencoder.data.text import fold, text_hash
from biencoder.pairs.methods import Pair


@dataclass(frozen=True, eq=False)
class Selection:
    """Which candidates are worth training on.

    Attributes:
        repeated: bool ``[n]``, true for pairs that repeat an earlier one.
        common: bool ``[n]``, true for other pairs whose query belongs to too many documents.
    """

    repeated: NDArray[np.bool_]
    common: NDArray[np.bool_]

    @property
    def chosen(self) -> NDArray[np.bool_]:
        """All the others."""
        return ~(self.repeated | self.common)


class CandidatePairs:
    """Pairs in the order of adding; the file is in the temporary folder (``TMPDIR``)."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="biencoder-")  # noqa: SIM115 (closed by __exit__)
        self._query, self._pair, self._document = array("Q"), array("Q"), array("Q")

    def __enter__(self) -> "CandidatePairs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._pair)

    def __iter__(self) -> Iterator[Pair]:
        self._file.seek(0)
        return (Pair(*orjson.loads(line)) for line in self._file)

    def add(self, pair: Pair, document: int) -> None:
        """Append a pair that was made from the document with this key."""
        query = fold(pair.query)
        self._query.append(text_hash(query))
        self._pair.append(text_hash(f"{query}\n{fold(pair.passage)}"))
        self._document.append(document)
        self._file.write(orjson.dumps((pair.query, pair.passage, pair.method), option=orjson.OPT_APPEND_NEWLINE))

    def select(self, max_same_query: int) -> Selection:
        """Drop pairs that repeat an earlier one, and every pair whose query belongs to too many documents.

        Texts are equal if they differ only in case and white space. The same holds for documents.

        Args:
            max_same_query: a query may belong to at most this many documents.
        """
        query, pair, document = (
            np.frombuffer(values, dtype=np.uint64) if values else np.empty(0, np.uint64)
            for values in (self._query, self._pair, self._document)
        )
        repeated = np.ones(len(pair), dtype=np.bool_)
        repeated[np.unique(pair, return_index=True)[1]] = False
        _, place = np.unique(splitmix64(query) ^ document, return_index=True)
        distinct, documents = np.unique(query[place], return_counts=True)
        common = np.isin(query, distinct[documents > max_same_query])
        return Selection(repeated, common & ~repeated)
