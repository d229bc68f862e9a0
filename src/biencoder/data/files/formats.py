"""Rows from JSON lines, CSV and Parquet files."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from biencoder.data.files.columns import QUERY_COLUMNS, SCORE_COLUMNS, RowError, find_columns
from biencoder.data.files.hub_copy import is_on_hub, local_copy, usual_split
from biencoder.data.files.lines import NotTextError, decode, listed, read_lines, shortened
from biencoder.errors import UserError, first_line
from biencoder.files import read_json

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

ARROW = ".arrow"

SUPPORTED = (
    ".jsonl, .json (one object per line) and .csv, each also with .gz, .parquet, folders of datasets' save_to_disk, "
    "and hf:NAME for a data set on the Hub"
)
_PARQUET_ROWS = 4096


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The data files that ``paths`` name: a file stands for itself, a folder for its supported files by name.

    The address of a data set on the Hub stands for itself too; afterwards its rows are here.

    Raises:
        UserError: a path does not exist, a file's ending is not supported, a folder holds no supported file, or the Hub
            does not have a data set.
    """
    files: list[Path] = []
    for path in paths:
        if is_on_hub(path):
            local_copy(path)
            files.append(path)
        elif path.is_dir():
            inside = saved_by_datasets(path) or _data_files(path)
            if not inside:
                raise UserError(f"the folder {path} holds no training data; biencoder reads: {SUPPORTED}")
            files += inside
        elif not path.exists():
            raise UserError(f"training data {path} does not exist")
        elif not _format(path):
            raise UserError(f"{path}: biencoder does not read this kind of file; it reads: {SUPPORTED}")
        else:
            files.append(path)
    return files


def read_rows(path: Path, *, every_column: bool = False) -> Iterator[tuple[int, Row | RowError]]:
    """The rows of a file with their line numbers (Parquet: row numbers), from 1; a row that cannot be read as an error.

    Args:
        path: the file.
        every_column: in a Parquet file, also read the columns that training does not need.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    if is_on_hub(path):
        return _read_arrow(local_copy(path), every_column, path)
    kind = _format(path)
    if kind == ".parquet":
        return _read_parquet(path, every_column)
    if kind == ARROW:
        return _read_arrow(path, every_column, path)
    return _read_csv(path) if kind == ".csv" else _read_json(path)


def saved_by_datasets(folder: Path) -> list[Path]:
    """The files of a data set that ``datasets`` wrote by ``save_to_disk``, in order; none for any other folder.

    Of several splits, the files of ``train``.

    Raises:
        UserError: the folder holds several splits and none is called train, or a file is missing.
    """
    splits = (read_json(folder / "dataset_dict.json") or {}).get("splits")
    if splits:
        names = [str(name) for name in splits]
        split = usual_split(names)
        if split is None or Path(split).name != split:
            raise UserError(
                f"{folder}: holds the splits {listed(names)}; name one of them, such as {folder / names[0]}"
            )
        return saved_by_datasets(folder / split)
    path = folder / "state.json"
    if not path.is_file() or not (folder / "dataset_info.json").is_file():
        return []
    state = read_json(path) or {}
    try:
        names = [str(each["filename"]) for each in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged; it does not name the files of the data set") from error
    if state.get("_indices_data_files"):
        raise UserError(f"{path}: names a choice of rows; call flatten_indices() before save_to_disk()")
    wrong = next((name for name in names if Path(name).name != name or not (folder / name).is_file()), None)
    if wrong is not None:
        raise UserError(f"{path}: names {wrong}, which is not in the folder")
    return [folder / name for name in names]


def _data_files(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != "." and _format(p))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error


def _format(path: Path) -> str | None:
    name = path.name.lower()
    if name.endswith((".parquet", ARROW)):
        return Path(name).suffix
    ending = Path(name.removesuffix(".gz")).suffix
    return ending if ending in (".jsonl", ".json", ".csv") else None


def _read_json(path: Path) -> Iterator[tuple[int, Row | RowError]]:
    for number, line in read_lines(path):
        if not line or line.isspace():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield number, _not_json(line, error)
            continue
        if type(row) is dict:
            yield number, row
        else:
            yield number, RowError("not JSON", f"must be a JSON object; found {describe(row)}{_array_hint(line)}")


def _not_json(line: bytes, error: orjson.JSONDecodeError) -> RowError:
    try:
        decode(line)
    except NotTextError as fault:
        return RowError(fault.kind, str(fault))
    return RowError("not JSON", f"not JSON ({error.msg}, column {error.colno}){_array_hint(line)}")


def _array_hint(line: bytes) -> str:
    return "; write one object per line, not a JSON array" if line.lstrip().startswith(b"[") else ""


def _read_csv(path: Path) -> Iterator[tuple[int, Row | RowError]]:
    csv.field_size_limit(1 << 30)  # by default, the csv module refuses texts longer than 128 KiB
    faults: dict[int, RowError] = {}  # line number -> what could not be decoded in it
    reader = csv.reader(_decoded(path, faults), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1  # where the row begins: a quoted text may span several lines
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, RowError("not CSV", f"not CSV ({error})")
            continue
        if faults and (found := [faults.pop(n) for n in range(number, reader.line_num + 1) if n in faults]):
            yield number, found[0]
        elif not cells:
            continue
        elif header is None:
            header = _unique([name.strip() for name in cells], f"{path}:{number}")
        elif len(cells) != len(header):
            yield number, RowError("not CSV", f"has {len(cells)} cells, but the header has {len(header)}")
        else:
            yield number, {name: _cell(name, text) for name, text in zip(header, cells, strict=True)}


def _decoded(path: Path, faults: dict[int, RowError]) -> Iterator[str]:
    for number, line in read_lines(path):
        try:
            yield decode(line)
        except NotTextError as fault:
            faults[number] = RowError(fault.kind, str(fault))
            yield line.decode(errors="replace").replace("\0", " ")


def _unique(names: list[str], place: str) -> list[str]:
    twice = next((name for number, name in enumerate(names) if name and name in names[:number]), None)
    if twice is not None:
        raise UserError(f"{place}: two columns are called {shortened(twice)!r}; rename one of them")
    return names


def _cell(column: str, text: str) -> Any:
    """A CSV cell as a JSON value. An empty cell is null; lists of texts and scores may be written as JSON."""
    if not text:
        return None
    is_score = column in SCORE_COLUMNS
    if column in QUERY_COLUMNS or column == "prompt" or not (is_score or text[0] == "["):
        return text
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return value if is_score or (type(value) is list and all(type(item) is str for item in value)) else text


def _read_parquet(path: Path, every_column: bool) -> Iterator[tuple[int, Row | RowError]]:
    import pyarrow.parquet as pq

    def batches() -> "Iterator[pa.RecordBatch]":
        with pq.ParquetFile(path) as file:
            wanted = _wanted(file.schema_arrow.names, path)
            yield from file.iter_batches(batch_size=_PARQUET_ROWS, columns=None if every_column else wanted)

    return _rows_of(batches(), path, "Parquet")


def _read_arrow(path: Path, every_column: bool, named: Path) -> Iterator[tuple[int, Row | RowError]]:
    """A file of ``datasets``: a stream of Arrow's batches. Messages call it as the person did."""
    import pyarrow as pa

    def batches() -> "Iterator[pa.RecordBatch]":
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            wanted = _wanted(stream.schema.names, named)
            for whole in stream:
                chosen = whole if every_column else whole.select(wanted)
                for start in range(0, chosen.num_rows, _PARQUET_ROWS):
                    yield chosen.slice(start, _PARQUET_ROWS)

    return _rows_of(batches(), named, "Arrow")


def _wanted(names: list[str], path: Path) -> list[str]:
    """The columns that training needs."""
    found = find_columns(tuple(_unique(names, str(path))))
    return [name for name in found if isinstance(name, str)] + list(found.negatives)


def _rows_of(batches: "Iterator[pa.RecordBatch]", path: Path, kind: str) -> Iterator[tuple[int, Row | RowError]]:
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020 (goes on counting)
                yield number, row
    except RowError as error:
        raise UserError(f"{path}: {error}") from error
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a complete {kind} file ({first_line(error)})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: a text in row {number + 1} or the {_PARQUET_ROWS} after it is not UTF-8") from error
    except (ValueError, OverflowError) as error:  # for example a date outside Python's range
        raise UserError(
            f"{path}: a value in row {number + 1} or the {_PARQUET_ROWS} after it cannot be read ({error})"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error


def describe(value: object) -> str:
    """What a JSON value is, in words for a message."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a value of type {type(value).__name__}")
