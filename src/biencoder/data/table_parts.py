"""The parts of a table that is read from files: those that are finished outlive a process that is killed.

A part is an Arrow file of :data:`PART_ROWS` rows, and a note of how far its reader had come. Parts of much data lie in
a folder of their own. Its name follows from what is read, so that the next reader finds them, whether it goes on after
a kill or is another rank of the same host. A part depends on nothing but the data, and each reader maps what it wrote
itself. So readers at the same time do not disturb each other. Little data are read again in seconds: their parts have
no names, and a process leaves none.
"""

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import xxhash

from biencoder.data.files.hub_copy import is_on_hub, local_copy
from biencoder.data.files.records import BadRows, Example, find_files
from biencoder.data.stored_rows import BLOCK_ROWS, mapped, write
from biencoder.files import read_json

PART_ROWS = BLOCK_ROWS << 7  # 1,048,576
NAMED_FROM = 1 << 28  # bytes of the files that are read: some seconds
_FORMAT = 1  # of a part; a version that writes parts in another way counts on


@dataclass
class Reached:
    """How far a reader has come.

    Attributes:
        file: number of the file.
        line: of it, of the last row that was used.
        bad: what was left out so far.
        is_end: there is no further row.
    """

    file: int = 0
    line: int = 0
    bad: BadRows = field(default_factory=BadRows)
    is_end: bool = False

    def note(self) -> str:
        """All of it as JSON."""
        return json.dumps(vars(self) | {"bad": vars(self.bad)})

    @staticmethod
    def noted(path: Path) -> "Reached | None":
        """What a note says; None if there is none that can be read."""
        try:
            content = read_json(path) or {}
            bad = BadRows(**content.pop("bad"))
            return Reached(bad=BadRows(Counter(bad.kinds), bad.messages, bad.empty_negatives), **content)
        except (KeyError, TypeError):
            return None


@dataclass(frozen=True)
class Parts:
    """The parts of one table.

    Attributes:
        folder: where they lie; None for files without names.
    """

    folder: Path | None

    @staticmethod
    def of(data_sets: Sequence[Sequence[Path]], *settings: Any) -> "Parts":
        """The parts of the table that is made of these data sets, each some files and folders, with these settings.

        Raises:
            UserError: a file does not exist, or is none that biencoder reads.
        """
        files = [path for paths in data_sets for path in find_files(paths)]
        known = [(str(path.absolute()), *_state(path)) for path in files]
        if sum(size for _, size, _ in known) < NAMED_FROM:
            return Parts(None)
        digest = xxhash.xxh3_128_hexdigest(repr((_FORMAT, PART_ROWS, known, settings)).encode())
        folder = Path(tempfile.gettempdir()) / f"biencoder-table-{digest}"
        return Parts(folder if _is_private(folder) else None)

    def finished(self) -> Iterator[tuple[tuple[Any, ...], Reached]]:
        """The record batches of each part that is there already, and how far its reader had come."""
        import pyarrow as pa

        number = 0
        while self.folder is not None and (reached := Reached.noted(self.folder / f"{number:06}.json")) is not None:
            try:
                with (self.folder / f"{number:06}.arrow").open("rb") as file:
                    yield mapped(file), reached
            except (OSError, ValueError, pa.ArrowException):
                return
            number += 1

    def add(self, number: int, examples: Iterator[tuple[int, int, Example]], reached: Reached) -> tuple[Any, ...]:
        """Write the next part.

        Args:
            number: of the part.
            examples: of which it takes :data:`PART_ROWS`, or what is left; number of the file, line, and the example.
            reached: how far their reader has come; it is at its end if they are fewer.

        Returns:
            The record batches.
        """
        with self._file(f"{number:06}.arrow") as file:
            rows = write(_followed(islice(examples, PART_ROWS), reached), file)
            blocks = mapped(file) if rows else ()
        reached.is_end = rows < PART_ROWS
        with self._file(f"{number:06}.json") as file:
            file.write(reached.note().encode())
        return blocks

    def forget(self) -> None:
        """Remove the names; what is mapped stays."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[IO[bytes]]:
        """A new file, which gets its name when it is complete and durable, if parts have names."""
        if self.folder is None or not _is_private(self.folder):
            with tempfile.TemporaryFile(prefix="biencoder-") as file:
                yield file
            return
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):  # another reader has finished the table and removed its parts
                os.replace(file.name, self.folder / name)


def _followed(examples: Iterable[tuple[int, int, Example]], reached: Reached) -> Iterator[tuple[int, int, Example]]:
    for each in examples:
        reached.file, reached.line, _ = each
        yield each


def _state(path: Path) -> tuple[int, int]:
    """Size and time of a file that is read: with them, its content changes."""
    found = (local_copy(path) if is_on_hub(path) else path).stat()
    return found.st_size, found.st_mtime_ns


def _is_private(folder: Path) -> bool:
    """Whether the folder is there, made here if need be, and nobody else may write to it."""
    try:
        folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    )
