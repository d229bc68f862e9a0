"""What people see: text, tables and a progress line; quiet on all ranks but the first.

Results go to standard output; progress and log lines go to standard error, so that ``> file`` holds only results.
Everything is printed as it is: no markup is interpreted, and control characters that came with somebody's data are
shown, not obeyed.

rich draws the tables and, on a terminal, the progress line. It is imported when there is something to draw.
"""

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

SECONDS_BETWEEN_LINES = 10.0  # of progress in a log file
LINES_A_RUN = 20
SECONDS_OF_SILENCE = 300.0
SECONDS_BETWEEN_REWRITES = 0.1
BAR_CELLS = 30
FEWEST_BAR_CELLS = 8  # a narrower window shows no bar

# Controls but for tab and newline, line and paragraph separators, direction marks, lone surrogates, unseen tags.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)
_NUMBER = re.compile(r"[-+]?[\d.,]+%?|-?")

# One line stands on the terminal at most, though one task may run inside another: it shows the task updated last.
_live: "Live | None" = None
_shown: "ProgressLine | None" = None


def escape(text: str) -> str:
    r"""``text`` with control characters written out (``\x1b``), which could otherwise drive the terminal."""
    return _CONTROLS.sub(lambda match: repr(match.group())[1:-1], text)


def say(text: str = "") -> None:
    """Print one or more lines on standard output."""
    _print(sys.stdout, escape(text))


def table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    """Print an aligned table on standard output; columns of numbers stand on the right.

    Args:
        rows: the cells, as many in each row as there are columns; line breaks in them are shown escaped.
        columns: the headings.
    """
    if not _first_rank():
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = _is_terminal(sys.stdout)
    style = box.SIMPLE_HEAD if terminal else None
    drawn = Table(box=style, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, heading in enumerate(columns):
        numeric = bool(rows) and all(_NUMBER.fullmatch(row[index]) for row in rows)
        drawn.add_column(Text(_cell(heading)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(_cell(cell)) for cell in row))
    console = Console(file=sys.stdout, force_terminal=terminal, width=None if terminal else 10_000, highlight=False)
    with console.capture() as capture:
        console.print(drawn)
    lines = capture.get().splitlines()
    _print(sys.stdout, "\n".join(line.rstrip() for line in lines))


def _cell(text: str) -> str:
    return escape(text).replace("\n", "\\n").replace("\t", "\\t")


def duration(seconds: float) -> str:
    """``8 s``, ``2 min 05 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class ProgressLine:
    """How far a long task is, on standard error: one line rewritten on a terminal, few lines in a log file.

    The line ends by itself at ``total``; `close`, or a ``with`` block, ends it early when the task does.

    Args:
        total: how many units there are.
        label: what is going on, such as ``train`` or ``encode passages``.
        done: units that an earlier run has done, which this one resumes; they do not count for the time left.
        clock: seconds, never running back.
    """

    def __init__(
        self, total: int, label: str = "", *, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total = total
        self._label = label
        self._clock = clock
        self._start, self._started = done, clock()
        self._last, self._last_at = done, self._started
        self._quiet = not _first_rank()
        self._terminal = _is_terminal(sys.stderr)

    def update(self, done: int, **fields: float | str) -> None:
        """Say that ``done`` of the units are done.

        Args:
            done: units that are done, including the ones from an earlier run.
            fields: what else to show, name and value, such as ``loss=0.31`` or ``**{"pairs/s": 120.5}``.
        """
        now = self._clock()
        if self._quiet or not (done >= self.total or self._is_time(done, now)):
            return
        self._last, self._last_at = done, now
        counts, rest = self._texts(done, now, fields)
        if not self._terminal:
            _print(sys.stderr, f"{counts}  {rest}".rstrip())
            return
        global _live, _shown
        _live, _shown = _live or _start_live(), self
        _live.update(_with_bar(counts, rest, done, self.total, _live.console.width), refresh=True)
        if done >= self.total:
            self.close()

    def _is_time(self, done: int, now: float) -> bool:
        waited = now - self._last_at
        if self._terminal:
            return waited >= SECONDS_BETWEEN_REWRITES
        enough = (done - self._last) * LINES_A_RUN >= self.total
        return waited >= SECONDS_OF_SILENCE or (waited >= SECONDS_BETWEEN_LINES and enough)

    def _texts(self, done: int, now: float, fields: dict[str, float | str]) -> tuple[str, str]:
        """What stands before the bar, and what stands after it."""
        share = done / self.total if self.total else 1.0
        rest = [f"{name} {value if isinstance(value, str) else format(value, '.4g')}" for name, value in fields.items()]
        spent = now - self._started
        if done >= self.total:
            rest.append(f"took {duration(spent)}")
        elif done > self._start:
            rest.append(f"{duration(spent / (done - self._start) * (self.total - done))} left")
        counts = f"{self._label} {done:,}/{self.total:,}".strip() + f"  {share:.0%}"
        return _one_line(counts), _one_line("  ".join(rest))

    def close(self) -> None:
        """End the line, so that what is printed next starts on its own."""
        global _live, _shown
        if _live and _shown is self:
            _live.stop()
            _live = _shown = None

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _start_live() -> "Live":
    """An empty line at the bottom of the terminal; what other code prints meanwhile appears above it."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stderr, force_terminal=True, force_interactive=True)
    live = Live(console=console, auto_refresh=False, redirect_stdout=_is_terminal(sys.stdout))
    live.start()
    console.show_cursor(True)  # rich hides the cursor, and a run that is killed could not bring it back
    return live


def _with_bar(counts: str, rest: str, done: int, total: int, width: int) -> "RenderableType":
    """One line of at most ``width`` cells; the bar gives way before the text does."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    before, after = Text(f"{counts}  ", end=""), Text(f"  {rest}", end="")
    room = width - before.cell_len - after.cell_len
    if room < FEWEST_BAR_CELLS:
        return Text(f"{counts}  {rest}", no_wrap=True, overflow="ellipsis")
    return Group(before, ProgressBar(total, done, width=min(room, BAR_CELLS)), after)


class LogHandler(logging.Handler):
    """Log records as lines on standard error: ``info: …``, ``warning: …``; on ranks but the first only warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if _first_rank() or record.levelno >= logging.WARNING:
            _print(sys.stderr, escape(f"{record.levelname.lower()}: {self.format(record)}"), every_rank=True)


def _print(stream: IO[str], text: str, *, every_rank: bool = False) -> None:
    """Print whole lines, above the progress line when one stands on the terminal."""
    if not (every_rank or _first_rank()):
        return
    if _live and _is_terminal(stream):
        _live.console.out(text, highlight=False)
    else:
        print(text, file=stream, flush=True)


def _one_line(text: str) -> str:
    return escape(text).replace("\n", " ").replace("\t", " ")


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _is_terminal(stream: IO[str]) -> bool:
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@contextlib.contextmanager
def progress_line(label: str = "encode") -> Iterator[Callable[[int, int], Callable[[int], None]]]:
    """A progress line that appears when it is started, with the number of units and those done before.

    What starting it returns is called with the number of units done. The line ends with the block.
    """
    with contextlib.ExitStack() as stack:
        yield lambda total, done: stack.enter_context(ProgressLine(total, label, done=done)).update


def shorten(text: str, most: int = 160) -> str:
    """The text on one line, with at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
