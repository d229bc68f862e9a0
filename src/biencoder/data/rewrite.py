"""Write training files again, as JSON lines: the same rows with some columns changed."""

import contextlib
import gzip
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson

from biencoder.data.files.formats import Row
from biencoder.data.files.records import BadRows, Example, find_files, read_examples_and_rows
from biencoder.data.table import ExampleTable
from biencoder.data.text import text_hash
from biencoder.errors import UserError
from biencoder.files import atomic_write

SUFFIXES = (".jsonl", ".jsonl.gz")
DECIMALS = 6  # decimals of a written score: float32 sums are not exact to more


def check_output(output: Path, train_data: Sequence[Path], *others: Path | None) -> None:
    """Refuse an ending other than JSON lines, and a place that this run or the next one reads.

    Raises:
        UserError: the output is one of the input files, is in an input folder, or has another ending.
    """
    if not output.name.lower().endswith(SUFFIXES) or output.is_dir():
        raise UserError(f"--output {output}: must be a file that ends in .jsonl or .jsonl.gz")
    place = output.resolve()
    if place in [path.resolve() for path in (*find_files(train_data), *others) if path is not None]:
        raise UserError(f"--output {output}: is also an input; name another file")
    for folder in train_data:
        if folder.is_dir() and place.parent == folder.resolve():
            raise UserError(
                f"--output {output}: is in {folder}, a folder of --train-data, so the next run would train on it; "
                "put it elsewhere"
            )


def rows_of(train_data: Sequence[Path], on_bad_row: str) -> Iterator[tuple[str, Row, Example]]:
    """Place, row with all its columns and example of each usable row, in the order of the files.

    Raises:
        UserError: a file cannot be read, or a row is bad and ``on_bad_row`` is ``"stop"``.
    """
    bad = BadRows()
    for path in find_files(train_data):
        for line, row, example in read_examples_and_rows(path, on_bad_row, bad, every_column=True):
            yield f"{path}:{line}", row, example


def same_rows(table: ExampleTable, train_data: Sequence[Path], on_bad_row: str) -> Iterator[tuple[str, Row, Example]]:
    """The rows that ``table`` was made of, read again as :func:`rows_of` does.

    Raises:
        UserError: a file has changed since.
    """
    number = 0
    for number, (place, row, example) in enumerate(rows_of(train_data, on_bad_row), 1):
        if number > len(table) or not _is_row(table, number - 1, example):
            raise UserError(f"{place}: the file changed while the command was running; start again")
        yield place, row, example
    if number < len(table):
        raise UserError(f"{table.location(number)}: the file changed while the command was running; start again")


def _is_row(table: ExampleTable, row: int, example: Example) -> bool:
    texts = (len(example.positives), len(example.negatives))
    had = tuple(
        int(part.offsets[row + 1] - part.offsets[row]) for part in (table.positive_hashes, table.negative_hashes)
    )
    return texts == had and text_hash(example.query) == int(table.query_hashes[row])


def as_line(row: Row, place: str) -> bytes:
    """The row as a line of JSON.

    Raises:
        UserError: a value has no form in JSON; a Parquet file may hold such values.
    """
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        raise UserError(
            f"{place}: JSON cannot hold one of its columns ({error}); remove that column from the file"
        ) from error


@contextlib.contextmanager
def write_lines(output: Path) -> Iterator[Callable[[bytes], object]]:
    """A function that writes bytes to ``output``, whole or not at all; compressed if the name ends in ``.gz``."""
    with atomic_write(output, "wb") as file:
        if output.name.lower().endswith(".gz"):
            # The gzip header holds neither name nor time, so equal rows give equal files.
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
                yield packed.write
        else:
            yield file.write
