"""``biencoder score``: a teacher's scores beside the passages of training files.

With a cross-encoder, ``OUT.partial`` holds the lines done so far and ``OUT.partial.state`` says how many they are and
of what: a run that was killed goes on there. With an embedding model the vectors of the passages are what is kept.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from biencoder.data.files.formats import Row
from biencoder.data.files.records import Example
from biencoder.data.files.rewrite import DECIMALS, as_line, check_output, rows_of, write_lines
from biencoder.errors import UserError
from biencoder.files import open_claimed, sync_folder
from biencoder.retrieval.encode import (
    Progress,
    StartProgress,
    beside,
    progress_line,
    read_json,
    shifted,
    write_json,
)

if TYPE_CHECKING:
    from biencoder.config import ScoreConfig

logger = logging.getLogger(__name__)

WINDOW_PAIRS = 4096  # among which lengths are sorted, and what a kill can cost
COSINE_TEMPERATURE = 0.05  # that of the student, unless it is told another


class Teacher(Protocol):
    """What scoring needs of :class:`biencoder.model.cross_encoder.CrossEncoder`."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal scores."""

    def score(self, pairs: Sequence[tuple[str, str]], progress: Progress | None = None) -> NDArray[np.float32]:
        """A logit for each query and passage, float32 ``[len(pairs)]``."""


@dataclass(frozen=True)
class Scored:
    """What was scored.

    Attributes:
        rows: of the training files.
        pairs: queries with a positive or a negative.
        reused: pairs that an earlier run had scored, or passages that it had encoded.
    """

    rows: int
    pairs: int
    reused: int


def run(config: "ScoreConfig") -> None:
    """The command: score, write the rows, say how many."""
    from biencoder.terminal import say

    check_output(config.output, config.train_data)
    with progress_line("score") as progress:
        if config.reranker is not None:
            from biencoder.model.cross_encoder import CrossEncoder

            source = summarize_rows(config.train_data, config.on_bad_row)  # bad rows are said before a model is loaded
            teacher = CrossEncoder.load(
                config.reranker,
                precision=config.precision,
                device=config.device,
                max_length=config.max_length,
                trust_remote_code=config.trust_remote_code,
            )
            scored = score_file(teacher, config, source, progress=progress)
        else:
            from biencoder.retrieval.scoring.by_vectors import score_file_by_vectors

            scored = score_file_by_vectors(config, progress=progress)
    say(f"{config.output}: {scored.rows:,} rows with the scores of {scored.pairs:,} pairs")


@dataclass(frozen=True)
class RowsSummary:
    """What training files hold.

    Attributes:
        rows: usable rows.
        pairs: their positives and negatives.
        fingerprint: digest of the rows with all their columns, in order.
    """

    rows: int
    pairs: int
    fingerprint: str


def summarize_rows(train_data: Sequence[Path], on_bad_row: str) -> RowsSummary:
    """Count and fingerprint the rows of training files, and by that check every one of them.

    Raises:
        UserError: a file cannot be read, a row is bad and ``on_bad_row`` is ``"stop"``, or no row is left.
    """
    digest, rows, pairs = xxhash.xxh3_128(), 0, 0
    for place, row, example in rows_of(train_data, on_bad_row):
        digest.update(as_line(row, place))
        rows += 1
        pairs += len(example.positives) + len(example.negatives)
    if not rows:
        raise UserError(f"no usable row in {', '.join(map(str, train_data))}")
    return RowsSummary(rows, pairs, digest.hexdigest())


def with_scores(row: Row, example: Example, scores: NDArray[np.float32]) -> Row:
    """The row with ``pos_scores`` and ``neg_scores``: first the positives' scores, then the negatives'."""
    rounded = [round(float(score), DECIMALS) for score in scores]
    positives = len(example.positives)
    return row | {"pos_scores": rounded[:positives], "neg_scores": rounded[positives:]}


def score_file(
    teacher: Teacher, config: "ScoreConfig", source: RowsSummary, *, progress: StartProgress | None = None
) -> Scored:
    """Score every positive and negative with its query, and write ``config.output``.

    Rows are scored in windows of some thousand pairs, sorted by length within. A run that was killed goes on after its
    last whole window when rows, teacher and settings are the same, and ends in the same bytes as one never killed;
    otherwise it starts over and says so. The output appears when it is whole.

    Args:
        teacher: gives logits.
        config: what `biencoder score` takes.
        source: what :func:`summarize_rows` says of the training files.
        progress: called once with the number of pairs, and of those done by an earlier run.

    Raises:
        UserError: scores that are not finite, or files that changed meanwhile.
    """
    output, temperature = config.output, config.teacher_temperature or 1.0
    of = {
        "rows": source.rows,
        "texts": source.fingerprint,
        "teacher": teacher.fingerprint,
        "temperature": temperature,
        "window": WINDOW_PAIRS,
    }
    partial, state = beside(output, ".partial"), beside(output, ".partial.state")
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = pairs = 0
    with open_claimed(partial) as file:
        reused = _done_before(partial, state, of)
        advance = None if progress is None else progress(source.pairs, reused["pairs"])
        file.truncate(reused["bytes"])
        file.seek(0, os.SEEK_END)
        for window in _windows(rows_of(config.train_data, config.on_bad_row)):
            texts = [(example.query, text) for _, _, example in window for text in _passages(example)]
            if rows >= reused["rows"]:
                scores = teacher.score(texts, shifted(advance, pairs)) / np.float32(temperature)
                file.writelines(_lines(window, scores))
                file.flush()
                os.fsync(file.fileno())
                done = {"rows": rows + len(window), "pairs": pairs + len(texts), "bytes": file.tell()}
                write_json(state, {"done": done, "source": of})
            rows, pairs = rows + len(window), pairs + len(texts)
        if (rows, pairs) != (source.rows, source.pairs):
            raise UserError(f"{', '.join(map(str, config.train_data))}: changed while it was read; start again")
        _publish(output, partial, state)
    return Scored(rows, pairs, reused["pairs"])


Window = list[tuple[str, Row, Example]]


def _windows(rows: Iterator[tuple[str, Row, Example]]) -> Iterator[Window]:
    """Whole rows with at least `WINDOW_PAIRS` pairs; the last window may have fewer."""
    window: Window = []
    pairs = 0
    for place, row, example in rows:
        window.append((place, row, example))
        pairs += len(_passages(example))
        if pairs >= WINDOW_PAIRS:
            yield window
            window, pairs = [], 0
    if window:
        yield window


def _passages(example: Example) -> tuple[str, ...]:
    return example.positives + example.negatives


def _lines(window: Window, scores: NDArray[np.float32]) -> Iterator[bytes]:
    start = 0
    for place, row, example in window:
        stop = start + len(_passages(example))
        yield as_line(with_scores(row, example, scores[start:stop]), place)
        start = stop


def _done_before(partial: Path, state: Path, of: dict[str, Any]) -> dict[str, int]:
    """Rows, pairs and bytes of ``partial`` that can be kept."""
    earlier = read_json(state)
    if earlier is not None:
        was = earlier.get("source") or {}
        names = {"texts": "the rows", "teacher": "the teacher or its settings", "temperature": "the temperature"}
        changed = [name for key, name in names.items() if was.get(key) != of[key]]
        done: dict[str, int] = earlier["done"]
        if was == of and partial.stat().st_size >= done["bytes"]:
            logger.info("going on after %s of %s rows, which %s holds", f"{done['rows']:,}", f"{of['rows']:,}", partial)
            return done
        why = f"is of another run ({' and '.join(changed)} differ)" if changed else "does not fit its record"
        logger.warning("%s %s: starting over", partial, why)
    state.unlink(missing_ok=True)  # first: a record must never describe another run's lines
    return {"rows": 0, "pairs": 0, "bytes": 0}


def _publish(output: Path, partial: Path, state: Path) -> None:
    if output.name.lower().endswith(".gz"):
        with partial.open("rb") as lines, write_lines(output) as write:
            while block := lines.read(1 << 20):
                write(block)
        partial.unlink()
    else:
        partial.replace(output)
        sync_folder(output.parent)
    state.unlink(missing_ok=True)
