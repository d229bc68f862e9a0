"""A file of texts to a file of vectors, in bounded memory, resumable after a kill.

During the run, ``EMB.npy.partial`` holds the rows done so far. ``EMB.npy.partial.json`` says how many they are and what
they are made from. When the matrix is complete, it is renamed to ``EMB.npy``, and ``EMB.npy.json`` says what it is made
from.
"""

import io
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from biencoder.config.choices import FLOAT32, PASSAGE, QUERY
from biencoder.device.choice import facts
from biencoder.errors import UserError
from biencoder.files import beside, open_claimed, read_json, sync_folder, write_json
from biencoder.retrieval.text_encoder import Advance, StartProgress, TextEncoder, finite, shifted
from biencoder.retrieval.texts import in_batches, read_texts, summarize
from biencoder.retrieval.vectors.parquet import PARQUET, write_parquet
from biencoder.retrieval.vectors.small import RANGES, shrink_file

logger = logging.getLogger(__name__)

CHUNK = 512  # texts between two records of progress on a CPU: a kill loses at most this many


@dataclass(frozen=True)
class Encoded:
    """What :func:`encode_file` made.

    Attributes:
        output: the ``.npy`` file.
        rows: number of texts.
        dim: dimensions of a vector.
        reused: rows that an earlier run had already encoded (all of them when the file was whole).
        vectors: how they are stored.
    """

    output: Path
    rows: int
    dim: int
    reused: int
    vectors: str = FLOAT32


def encode_file(
    encoder: TextEncoder,
    input: Path,
    output: Path,
    *,
    kind: str = PASSAGE,
    vectors: str = FLOAT32,
    progress: StartProgress | None = None,
) -> Encoded:
    """Encode a file of texts into a ``.npy`` or ``.parquet`` file, row i for text i.

    Memory never holds all texts or all vectors. A killed run continues from its last record if texts, model and
    settings are the same. It then makes the same file as a run that was never killed. Otherwise it starts over
    and says so.

    Args:
        encoder: makes the vectors.
        input: texts, see :func:`~biencoder.retrieval.texts.read_texts`.
        output: the ``.npy`` file, or a ``.parquet`` file with ids and texts too; it appears when it is whole.
        vectors: how to store them, see :mod:`biencoder.retrieval.vectors.small`; they are float32 until all are made.
        kind: ``query`` or ``passage`` (under the model's prompt for it), or ``plain`` (no prompt).
        progress: called once with the number of texts and the number that an earlier run has done. The function that it
            returns is called with the number done so far.

    Raises:
        UserError: bad input or output path, too little disk space, or a model whose vectors are not finite.
    """
    if output.suffix not in (".npy", PARQUET) or output.is_dir():
        raise UserError(f"--output {output}: must be a file that ends in .npy (a numpy matrix) or .parquet")
    summary = summarize(input)
    rows, dim = summary.rows, encoder.dim
    source = {"rows": rows, "dim": dim, "kind": kind, "texts": summary.fingerprint, "model": encoder.fingerprint}
    source |= {} if vectors == FLOAT32 else {"vectors": vectors}
    partial, record = beside(output, ".partial"), beside(output, ".partial.json")
    if _is_whole(output, partial, record, source):
        return Encoded(output, rows, dim, rows, vectors)
    header = _header(rows, dim)
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_space(output, 4 * dim * rows - (partial.stat().st_size if partial.exists() else 0))
    with open_claimed(partial) as file:
        reused = _rows_done(partial, record, source, len(header))
        if reused == 0:
            record.unlink(missing_ok=True)  # first: a record must never describe another run's rows
        advance = None if progress is None else progress(rows, reused)
        file.write(header)
        file.truncate(len(header) + 4 * dim * reused)
        file.seek(0, os.SEEK_END)
        done = 0
        for batch in in_batches(read_texts(input), CHUNK * facts(encoder.device).bulk):
            if done >= reused:
                made = _encode_batch(encoder, [row.text for row in batch], kind, shifted(advance, done))
                file.write(finite(made, f"{input}, text", done).astype("<f4").tobytes())
                file.flush()
                os.fsync(file.fileno())
                write_json(record, {"rows_done": done + len(batch), "source": source})
            done += len(batch)
        if done != rows:
            raise UserError(f"{input}: the file changed while biencoder read it; start again")
        _publish(input, output, partial, record, source)
    return Encoded(output, rows, dim, reused, vectors)


def description(output: Path) -> dict[str, Any] | None:
    """What a matrix was made from (``rows``, ``dim``, ``kind``, digests ``texts`` and ``model``); None if unknown.

    If the vectors are not float32, ``vectors`` says how they are stored, and ``ranges`` belongs to int8.
    """
    return read_json(beside(output, ".json"))


def _is_whole(output: Path, partial: Path, record: Path, source: dict[str, Any]) -> bool:
    """Whether an earlier run has made this matrix. If a kill stopped that run at its last steps, finish them now."""
    made_from = description(output) or {}
    if output.is_file() and {name: value for name, value in made_from.items() if name != RANGES} == source:
        if _is_converted(output, source):
            partial.unlink(missing_ok=True)
        if not partial.exists():
            record.unlink(missing_ok=True)  # a kill stopped the earlier run before this
        logger.info(
            "%s is already complete for these texts, this model and these settings; there is nothing to do", output
        )
        return True
    finished = {"rows_done": source["rows"], "source": source}
    is_there = output.is_file() and not partial.exists() and not _is_converted(output, source)
    if is_there and read_json(record) == finished:
        _describe(output, record, source)  # a kill stopped the earlier run between the last two steps
        return True
    return False


def _encode_batch(encoder: TextEncoder, texts: list[str], kind: str, progress: Advance | None) -> np.ndarray:
    if kind == QUERY:
        return encoder.encode_queries(texts, progress)
    if kind == PASSAGE:
        return encoder.encode_passages(texts, progress)
    return encoder.encode(texts, progress=progress)


def _header(rows: int, dim: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)})
    return file.getvalue()


def _rows_done(partial: Path, record: Path, source: dict[str, Any], header: int) -> int:
    """How many rows of ``partial`` can be kept."""
    earlier = read_json(record)
    if earlier is None or not partial.is_file():
        return 0
    if earlier.get("source") != source:
        names = {"texts": "the texts", "model": "the model or its settings", "kind": "the kind of text"}
        was = earlier.get("source") or {}
        changed = [name for key, name in names.items() if was.get(key) != source[key]]
        logger.warning("%s belongs to another run (%s differ); starting over", partial, " and ".join(changed))
        return 0
    rows = int(earlier["rows_done"])
    if partial.stat().st_size < header + 4 * source["dim"] * rows:
        logger.warning("%s is shorter than its record says; starting over", partial)
        return 0
    logger.info("continuing after %s of %s texts, which are in %s", f"{rows:,}", f"{source['rows']:,}", partial)
    return rows


def _check_space(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output.parent).free
    if needed > free:
        raise UserError(
            f"--output {output}: needs {needed / 1e9:.1f} GB of disk space, but only {free / 1e9:.1f} GB are free"
        )


def _is_converted(output: Path, source: dict[str, Any]) -> bool:
    """Whether the output is not the matrix of float32 that encoding fills."""
    return "vectors" in source or output.suffix == PARQUET


def _publish(input: Path, output: Path, partial: Path, record: Path, source: dict[str, Any]) -> None:
    # The old description goes first, so that no description is ever beside a matrix that it does not describe.
    beside(output, ".json").unlink(missing_ok=True)
    if _is_converted(output, source):
        kind = source.get("vectors", FLOAT32)
        if output.suffix == PARQUET:
            needed = write_parquet(partial, input, output, kind)
        else:
            needed = shrink_file(partial, output, kind)
        _describe(output, record, source | needed)
        partial.unlink()
        return
    partial.replace(output)
    sync_folder(output.parent)
    _describe(output, record, source)


def _describe(output: Path, record: Path, source: dict[str, Any]) -> None:
    write_json(beside(output, ".json"), source)
    record.unlink(missing_ok=True)
