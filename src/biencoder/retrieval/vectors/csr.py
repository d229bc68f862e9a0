"""Sparse rows in the files that other tools take: a CSR matrix in ``.npz``, or JSON lines of words and weights.

``.npz`` is what ``scipy.sparse.load_npz`` reads. A JSON line is ``{"_id": …, "vector": {word: weight, …}}``;
OpenSearch, Elasticsearch and Vespa take the inner object.

Shapes: N texts, T weights of all of them.
"""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import orjson
from numpy.typing import NDArray

from biencoder.errors import UserError
from biencoder.files import atomic_write
from biencoder.model.representations.ragged import SparseVectors
from biencoder.retrieval.texts import read_texts

CSR, JSON_LINES = ".npz", ".jsonl"
AT_ONCE = 4096  # texts


def write_csr(rows: SparseVectors, columns: int, output: Path) -> None:
    """Write a CSR matrix ``[N, columns]`` block by block; the file appears when it is whole."""
    with atomic_write(output, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        _write_array(archive, "format", np.array(b"csr"))
        _write_array(archive, "shape", np.array([len(rows), columns], np.int64))
        _write_array(archive, "indptr", rows.starts)
        blocks = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
        _write_blocks(archive, "indices", (block.tokens.astype(np.int32) for block in blocks), np.int32, rows)
        _write_blocks(archive, "data", (block.weights for block in blocks), np.float32, rows)


def write_json_lines(rows: SparseVectors, words: Sequence[str], texts: Path, output: Path) -> None:
    """Write a line for each text, with its id; the file appears when it is whole."""
    with atomic_write(output, "wb") as file:
        for number, text in enumerate(read_texts(texts)):
            row = rows[number : number + 1]
            weights = {words[t]: round(w, 6) for t, w in zip(row.tokens.tolist(), row.weights.tolist(), strict=True)}
            file.write(orjson.dumps({"_id": text.id, "vector": weights}) + b"\n")


def read_csr(path: Path) -> tuple[SparseVectors, int]:
    """The rows of a CSR matrix, in memory, and its number of columns.

    Raises:
        UserError: it is none, or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in ("shape", "indptr", "indices", "data")}
        rows = np.stack([found["indices"], found["data"]], axis=1).astype(np.float32)
        starts = found["indptr"].astype(np.int64)
        if starts[-1] != len(rows) or len(starts) != int(found["shape"][0]) + 1 or (np.diff(starts) < 0).any():
            raise ValueError("its parts do not fit one another")
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as a CSR matrix ({error})") from error
    return SparseVectors(rows, starts), int(found["shape"][1])


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[np.generic]) -> None:
    with archive.open(f"{name}.npy", "w") as member:
        np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _write_blocks(
    archive: zipfile.ZipFile,
    name: str,
    blocks: Iterator[NDArray[np.generic]],
    kind: type[np.generic],
    rows: SparseVectors,
) -> None:
    member: IO[bytes]
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        form = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (int(rows.starts[-1]),)}
        np.lib.format.write_array_header_1_0(member, form)
        for block in blocks:
            member.write(np.ascontiguousarray(block, kind).tobytes())
