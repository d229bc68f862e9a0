"""Text files line by line. This module alone handles gzip, byte-order marks and broken streams."""

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from biencoder.errors import UserError

LONGEST_LINE = 1 << 28  # bytes: far above any text, far below what a small compressed file can swell to

_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_NAMES_SHOWN = 20
_LETTERS_SHOWN = 40


class NotTextError(ValueError):
    """Why the bytes of a line are not text; ``kind`` groups such lines for counting."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file, ``.gz`` or plain, with their numbers from 1; each line keeps its line end.

    A UTF-8 byte-order mark is removed. Lines stay bytes: the caller decides what to do with a line that is not text,
    and calls :func:`decode`.

    Raises:
        UserError: the file cannot be read, is UTF-16, its gzip stream is damaged or cut off, or a line is longer than
            :data:`LONGEST_LINE`.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE + 1), b""), 1):
                if len(line) > LONGEST_LINE:
                    raise UserError(
                        f"{path}:{number}: the line is longer than {LONGEST_LINE >> 20} MiB; write one row per line"
                    )
                yield number, _without_mark(path, line) if number == 1 else line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: the gzip stream is damaged or cut off after line {number} ({error}); copy the file again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def decode(line: bytes) -> str:
    """The text of a line.

    Raises:
        NotTextError: the line is not UTF-8, or holds a NUL byte, as damaged files and binary files do.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        place = f"byte {line[error.start]:#04x}, column {error.start + 1}"
        raise NotTextError("not UTF-8", f"not UTF-8 text ({place})") from error
    if "\0" in text:
        raise NotTextError(
            "NUL byte", f"a NUL byte (column {text.index(chr(0)) + 1}): the file is damaged, or is not text"
        )
    return text


def listed(names: Sequence[object]) -> str:
    """The first few names from a file, for a message; long names are cut short."""
    shown = ", ".join(shortened(name) for name in names[:_NAMES_SHOWN]) or "none"
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN:,} more"


def shortened(name: object) -> str:
    """A name from a file, cut short for a message: in the file it may be megabytes long."""
    text = str(name)
    return text if len(text) <= _LETTERS_SHOWN else text[: _LETTERS_SHOWN - 1] + "…"


def _open(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        # GzipFile finds line ends in Python; the buffer in front of it does so in C.
        return io.BufferedReader(gzip.open(path), buffer_size=1 << 18)
    return path.open("rb", buffering=1 << 18)


def _without_mark(path: Path, line: bytes) -> bytes:
    if line.startswith(_UTF16_MARKS):
        raise UserError(f"{path} is UTF-16 text; save it as UTF-8")
    return line.removeprefix(_UTF8_MARK)
