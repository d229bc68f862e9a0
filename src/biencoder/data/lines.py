"""Text files line by line: gzip, byte-order marks and broken streams are dealt with here, once."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from biencoder.errors import UserError

_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file, ``.gz`` or plain, with their numbers from 1; line ends are left on.

    A UTF-8 byte-order mark is taken off. Nothing is decoded: what a line that is not UTF-8 means is for the caller.

    Raises:
        UserError: the file cannot be read, is UTF-16, or its gzip stream is damaged or cut off.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, 1):
                yield number, _without_mark(path, line) if number == 1 else line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: the gzip stream is damaged or cut off after line {number} ({error}); copy the file anew"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _open(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        # GzipFile finds line ends in Python; the buffer in front of it does so in C.
        return io.BufferedReader(gzip.open(path), buffer_size=1 << 18)
    return path.open("rb", buffering=1 << 18)


def _without_mark(path: Path, line: bytes) -> bytes:
    if line.startswith(_UTF16_MARKS):
        raise UserError(f"{path} is UTF-16 text; save it as UTF-8")
    return line.removeprefix(_UTF8_MARK)
