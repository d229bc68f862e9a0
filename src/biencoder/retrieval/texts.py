"""Files of texts, read as a stream: one text per line, or JSON lines with ``text``."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import xxhash

from biencoder.data.files.lines import NotTextError, decode, listed, read_lines
from biencoder.errors import UserError

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True, slots=True)
class Text:
    """A row of a file of texts.

    Attributes:
        id: the row's ``_id``; without one, the number of its line, from 1.
        text: the text to encode; a ``title`` comes before it, with a space between.
    """

    id: str
    text: str


@dataclass(frozen=True)
class Summary:
    """What a file of texts holds.

    Attributes:
        rows: number of texts.
        fingerprint: digest of the texts in their order; file name, ids and compression do not matter.
    """

    rows: int
    fingerprint: str


def read_texts(path: Path) -> Iterator[Text]:
    """The texts of a file in order, one at a time.

    ``.jsonl``, ``.json`` and ``.ndjson`` files hold one object per line; other files hold one text per line. ``.gz``
    may follow. An empty line is an empty text; in JSON lines it is skipped.

    Raises:
        UserError: the file does not exist, or a line is not UTF-8, is not JSON or has no ``text``.
    """
    as_json = path.name.lower().removesuffix(".gz").endswith(JSON_SUFFIXES)
    for number, line in read_lines(path):
        if not as_json:
            yield Text(str(number), _decode(line.removesuffix(b"\n").removesuffix(b"\r"), path, number))
        elif line.strip():
            yield _from_json(line, path, number)


def summarize(path: Path) -> Summary:
    """Count and fingerprint the texts of a file. This checks every line.

    Raises:
        UserError: see :func:`read_texts`; or the file holds no text.
    """
    digest, rows = xxhash.xxh3_128(), 0
    for row in read_texts(path):
        encoded = row.text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
        rows += 1
    if rows == 0:
        raise UserError(f"{path}: the file holds no text")
    return Summary(rows, digest.hexdigest())


def in_batches(rows: Iterable[Text], size: int) -> Iterator[list[Text]]:
    """Lists of ``size`` rows; the last may be shorter."""
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        return decode(line)
    except NotTextError as error:
        raise UserError(f"{path}:{number}: {error}") from error


def _from_json(line: bytes, path: Path, number: int) -> Text:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        _decode(line, path, number)  # raises a clearer error if the line is not text at all
        raise UserError(f"{path}:{number}: not JSON ({error.msg}, column {error.colno})") from error
    if not isinstance(row, dict):
        raise UserError(f'{path}:{number}: not a JSON object; a row looks like {{"_id": "7", "text": "..."}}')
    text, title = row.get("text"), row.get("title") or ""
    if not isinstance(text, str) or not isinstance(title, str):
        raise UserError(
            f"{path}:{number}: needs `text`, a string, and may have `title` and `_id`; found: {listed(list(row))}"
        )
    identifier = row.get("_id", number)
    if isinstance(identifier, bool) or not isinstance(identifier, (str, int)):
        raise UserError(f"{path}:{number}: `_id` must be a string")
    return Text(str(identifier), f"{title} {text}" if title else text)
