"""Add a cross-encoder's scores to training files; a killed run can continue.

``OUT.partial`` holds the lines done so far. ``OUT.partial.state`` says how many they are and what they are made from,
and a killed run continues there.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from biencoder.config import ScoreConfig
from biencoder.data.files.formats import Row
from biencoder.data.files.records import Example
from biencoder.data.rewrite import as_line, rows_of, write_lines
from biencoder.errors import UserError
from biencoder.files import beside, open_claimed, read_json, sync_folder, write_json
from biencoder.model.parallel.sharing import is_first, told
from biencoder.retrieval.scoring.scored_rows import RowsSummary, Scored, with_scores
from biencoder.retrieval.text_encoder import Advance, StartProgress, shifted

logger = logging.getLogger(__name__)

WINDOW_PAIRS = 4096  # pairs that are sorted by length together; a kill loses at most one window


class Teacher(Protocol):
    """What scoring needs from :class:`biencoder.model.cross_encoder.CrossEncoder`."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal scores."""

    def score(self, pairs: Sequence[tuple[str, str]], progress: Advance | None = None) -> NDArray[np.float32]:
        """A logit for each query and passage, float32 ``[len(pairs)]``."""


def score_file(
    teacher: Teacher, config: ScoreConfig, source: RowsSummary, *, progress: StartProgress | None = None
) -> Scored:
    """Score every positive and negative with its query, and write ``config.output``.

    Rows are scored in windows of some thousand pairs; within a window, pairs are sorted by length. A killed run
    continues after its last complete window if rows, teacher and settings are the same. It then writes the same bytes
    as a run that was never killed. Otherwise it starts over and says so. The output appears when it is complete. Ranks
    that share their work score each window together; the first one writes.

    Args:
        teacher: the model that gives the logits.
        config: the options of `biencoder score`.
        source: the result of :func:`summarize_rows` for the training files.
        progress: called once with the number of pairs and the number that an earlier run has done.

    Raises:
        UserError: a score is not finite, or a file changed meanwhile.
    """
    output, temperature = config.output, config.teacher_temperature or 1.0
    of = {
        "rows": source.rows,
        "texts": source.fingerprint,
        "teacher": teacher.fingerprint,
        "temperature": temperature,
        "window": WINDOW_PAIRS,
    }
    rows = pairs = 0
    with _unfinished(output, of) as unfinished:
        reused = told(unfinished.reused if unfinished else {})
        advance = None if progress is None else progress(source.pairs, reused["pairs"])
        for window in _windows(rows_of(config.train_data, config.on_bad_row)):
            texts = [(example.query, text) for _, _, example in window for text in _passages(example)]
            if rows >= reused["rows"]:
                scores = teacher.score(texts, shifted(advance, pairs)) / np.float32(temperature)
                if unfinished:
                    unfinished.append(_lines(window, scores), rows + len(window), pairs + len(texts))
            rows, pairs = rows + len(window), pairs + len(texts)
        if (rows, pairs) != (source.rows, source.pairs):
            raise UserError(f"{', '.join(map(str, config.train_data))}: changed while biencoder read it; start again")
        if unfinished:
            _publish(output)
    return Scored(rows, pairs, reused["pairs"])


@contextlib.contextmanager
def _unfinished(output: Path, of: dict[str, Any]) -> "Iterator[_Unfinished | None]":
    """What an earlier run has done, open to be continued; None on ranks that do not write."""
    if not is_first():
        yield None
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with open_claimed(beside(output, ".partial")) as file:
        yield _Unfinished(file, output, of)


class _Unfinished:
    """The lines done so far, and a record of them; ``reused`` counts those that an earlier run has done."""

    def __init__(self, file: IO[bytes], output: Path, of: dict[str, Any]) -> None:
        self._file, self._state, self._of = file, beside(output, ".partial.state"), of
        self.reused = _done_before(beside(output, ".partial"), self._state, of)
        file.truncate(self.reused["bytes"])
        file.seek(0, os.SEEK_END)

    def append(self, lines: Iterator[bytes], rows: int, pairs: int) -> None:
        """Add the lines of a window, of which no kill loses any after this; so many rows and pairs are done then."""
        self._file.writelines(lines)
        self._file.flush()
        os.fsync(self._file.fileno())
        done = {"rows": rows, "pairs": pairs, "bytes": self._file.tell()}
        write_json(self._state, {"done": done, "source": self._of})


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
            logger.info(
                "continuing after %s of %s rows, which are in %s", f"{done['rows']:,}", f"{of['rows']:,}", partial
            )
            return done
        why = f"belongs to another run ({' and '.join(changed)} differ)" if changed else "does not fit its record"
        logger.warning("%s %s; starting over", partial, why)
    state.unlink(missing_ok=True)  # first: a record must never describe another run's lines
    return {"rows": 0, "pairs": 0, "bytes": 0}


def _publish(output: Path) -> None:
    partial, state = beside(output, ".partial"), beside(output, ".partial.state")
    if output.name.lower().endswith(".gz"):
        with partial.open("rb") as lines, write_lines(output) as write:
            while block := lines.read(1 << 20):
                write(block)
        partial.unlink()
    else:
        partial.replace(output)
        sync_folder(output.parent)
    state.unlink(missing_ok=True)
