"""A file of texts to a file of vectors, in bounded memory, resumable after a kill.

During the run, ``EMB.npy.partial`` holds the rows done so far. ``EMB.npy.partial.json`` says how many they are and what
they are made from. When the matrix is complete, it is renamed to ``EMB.npy``, and ``EMB.npy.json`` says what it is made
from. Where texts have a vector for each token, the rows are these vectors, and ``EMB.npy.lengths.npy`` counts those of
each text.

Ranks that share their work encode a chunk of texts each, and the first rank writes what all of them have made.
"""

import contextlib
import itertools
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from biencoder.config.choices import DENSE, FLOAT16, FLOAT32, MULTI, PASSAGE, QUERY, SPARSE
from biencoder.device.choice import facts
from biencoder.errors import UserError
from biencoder.files import beside, open_claimed, read_json, sync_folder, write_json
from biencoder.model.parallel.sharing import by_turns, is_first, ranks, told
from biencoder.model.representations.ragged import SparseVectors, Vectors, row_size
from biencoder.retrieval.text_encoder import Advance, StartProgress, TextEncoder, finite, shifted
from biencoder.retrieval.texts import Text, in_batches, read_texts, summarize
from biencoder.retrieval.vectors.csr import CSR, JSON_LINES, write_csr, write_json_lines
from biencoder.retrieval.vectors.parquet import PARQUET, write_parquet
from biencoder.retrieval.vectors.small import RANGES, shrink_file
from biencoder.retrieval.vectors.stored import lengths_of, write_lengths
from biencoder.retrieval.vectors.unfinished import TOKENS, Unfinished, lengths_so_far

logger = logging.getLogger(__name__)

CHUNK = 512  # texts between two records of progress on a CPU: a kill loses at most this many of each rank


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
    """Encode a file of texts into a ``.npy`` or ``.parquet`` file, row i for text i, or a row for each of its tokens.

    Memory never holds all texts or all vectors. A killed run continues from its last record if texts, model and
    settings are the same, also on another number of ranks. It then makes the same file as a run that was never killed.
    Otherwise it starts over and says so.

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
    _check_form(output, encoder.kind, vectors)
    summary = summarize(input)
    rows, dim = summary.rows, row_size(encoder.no_texts)
    source = {"rows": rows, "dim": dim, "kind": kind, "texts": summary.fingerprint, "model": encoder.fingerprint}
    source |= ({} if vectors == FLOAT32 else {"vectors": vectors}) | ({} if encoder.kind == DENSE else {TOKENS: True})
    if told(is_first() and _is_whole(output, source)):
        return Encoded(output, rows, dim, rows, vectors)
    with _unfinished(output, source) as unfinished:
        reused = told(unfinished.texts if unfinished else 0)
        advance = None if progress is None else progress(rows, reused)
        done = reused
        for made in _made(encoder, itertools.islice(read_texts(input), reused, None), kind, shifted(advance, reused)):
            finite(made, f"{input}, text", done)
            if unfinished:
                unfinished.append(made)
            done += len(made)
        if done != rows:
            raise UserError(f"{input}: the file changed while biencoder read it; start again")
        if unfinished:
            unfinished.finish()
            _publish(input, output, source, encoder.words if encoder.kind == SPARSE else ())
        told(None)  # no rank goes on before the file is there
    return Encoded(output, rows, dim, reused, vectors)


@contextlib.contextmanager
def _unfinished(output: Path, source: dict[str, Any]) -> Iterator[Unfinished | None]:
    """What an earlier run has done, open to be continued; None on ranks that do not write."""
    if not is_first():
        yield None
        return
    partial = beside(output, ".partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_space(output, 4 * source["dim"] * source["rows"] - (partial.stat().st_size if partial.exists() else 0))
    with open_claimed(partial) as file:
        yield Unfinished(file, output, source)


def _made(encoder: TextEncoder, texts: Iterator[Text], kind: str, advance: Advance | None) -> Iterator[Vectors]:
    """The vectors of each chunk of texts, in order."""
    at_once = CHUNK * facts(encoder.device).bulk
    within = advance if ranks() == 1 else None  # nobody knows how far other ranks are within their chunks

    def encode(chunk: tuple[int, list[Text]]) -> Vectors:
        number, rows = chunk
        progress = shifted(within, number * at_once)
        if kind == QUERY:
            return encoder.represent_queries([row.text for row in rows], progress)
        return encoder.represent_passages([row.text for row in rows], progress, prompt=None if kind == PASSAGE else "")

    done = 0
    for made in by_turns(encode, enumerate(in_batches(texts, at_once))):
        yield made
        done += len(made)
        if advance is not None and within is None:
            advance(done)


def _check_form(output: Path, kind: str, vectors: str) -> None:
    """Raise `UserError` for a name, or a way to store numbers, that does not go with what a model makes."""
    suffixes = {DENSE: (".npy", PARQUET), SPARSE: (CSR, JSON_LINES)}.get(kind, (".npy",))
    if output.suffix not in suffixes or output.is_dir():
        why = "" if kind == DENSE else f" (the model's head is {kind})"
        raise UserError(f"--output {output}: must be a file that ends in {' or '.join(suffixes)}{why}")
    if kind != DENSE and vectors not in ((FLOAT32, FLOAT16) if kind == MULTI else (FLOAT32,)):
        stored = f"{FLOAT32} or {FLOAT16}" if kind == MULTI else FLOAT32
        raise UserError(f"--vectors {vectors}: the model's head is {kind}, and is stored as {stored}")


def description(output: Path) -> dict[str, Any] | None:
    """What a matrix was made from (``rows``, ``dim``, ``kind``, digests ``texts`` and ``model``); None if unknown.

    If the vectors are not float32, ``vectors`` says how they are stored, and ``ranges`` belongs to int8.
    """
    return read_json(beside(output, ".json"))


def _is_whole(output: Path, source: dict[str, Any]) -> bool:
    """Whether an earlier run has made this matrix. If a kill stopped that run at its last steps, finish them now."""
    partial, record = beside(output, ".partial"), beside(output, ".partial.json")
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


def _check_space(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output.parent).free
    if needed > free:
        raise UserError(
            f"--output {output}: needs {needed / 1e9:.1f} GB of disk space, but only {free / 1e9:.1f} GB are free"
        )


def _is_converted(output: Path, source: dict[str, Any]) -> bool:
    """Whether the output is not the one file of float32 that encoding fills."""
    return "vectors" in source or TOKENS in source or output.suffix == PARQUET


def _publish(input: Path, output: Path, source: dict[str, Any], words: Sequence[str]) -> None:
    partial, record = beside(output, ".partial"), beside(output, ".partial.json")
    # The old description goes first, so that no description is ever beside a matrix that it does not describe.
    beside(output, ".json").unlink(missing_ok=True)
    if TOKENS not in source:
        lengths_of(output).unlink(missing_ok=True)
    if _is_converted(output, source):
        needed = _convert(input, output, partial, source, words)
        _describe(output, record, source | needed)
        partial.unlink()
        beside(partial, ".lengths").unlink(missing_ok=True)
        return
    partial.replace(output)
    sync_folder(output.parent)
    _describe(output, record, source)


def _convert(input: Path, output: Path, partial: Path, source: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Write the output from the matrix of float32; what a reader needs to know beside ``source``."""
    kind = source.get("vectors", FLOAT32)
    if output.suffix in (CSR, JSON_LINES):
        starts = np.concatenate([[0], np.cumsum(lengths_so_far(output), dtype=np.int64)])
        rows = SparseVectors(np.load(partial, mmap_mode="r", allow_pickle=False), starts)
        if output.suffix == CSR:
            write_csr(rows, len(words), output)
        else:
            write_json_lines(rows, words, input, output)
        return {}
    if TOKENS in source:
        write_lengths(output, lengths_so_far(output))
    return (
        write_parquet(partial, input, output, kind) if output.suffix == PARQUET else shrink_file(partial, output, kind)
    )


def _describe(output: Path, record: Path, source: dict[str, Any]) -> None:
    write_json(beside(output, ".json"), source)
    record.unlink(missing_ok=True)
