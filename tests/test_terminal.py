import io
import logging
import re
import sys
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from biencoder import terminal
from biencoder.terminal import LogHandler, ProgressLine, duration, escape, say, table

BAR = re.compile("[━╸╺]+")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What a person sees: the lines of the screen, without colours. Fails for a code that is not known here."""
        screen, row = [""], 0
        for part in re.findall("\x1b\\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+|\x1b", self.getvalue()):
            if part == "\n":
                row += 1
                screen += [""] * (row == len(screen))
            elif part == "\x1b[2K":
                screen[row] = ""
            elif not (part == "\r" or part.endswith("m") or part in ("\x1b[?25l", "\x1b[?25h")):
                assert not part.startswith("\x1b"), repr(part)
                screen[row] += part
        return screen


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal that both standard streams are connected to."""
    stream = Terminal()
    monkeypatch.setattr(
        terminal, "sys", SimpleNamespace(stdout=stream, stderr=stream)
    )  # pytest swaps sys.stderr itself
    monkeypatch.delenv("TERM", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return stream


def test_escape_shows_controls_and_keeps_text() -> None:
    assert escape("a\x1b[31mred\x07\r\x9b") == r"a\x1b[31mred\x07\r\x9b"
    assert escape("safe \u202egnp.exe") == r"safe \u202egnp.exe"
    assert escape("line\nline\tünï 漢字 🙂") == "line\nline\tünï 漢字 🙂"
    assert escape("\ud800") == r"\ud800"


def test_say_interprets_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    say("[bold]x[/bold] :smile: \x1b[2J")
    assert capsys.readouterr().out == "[bold]x[/bold] :smile: \\x1b[2J\n"


def test_a_table_is_aligned_and_numbers_stand_on_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    table([["nDCG@10", "0.679", "+0.165"], ["[red]", "10.1", "-"]], ["measure", "before", "change"])
    assert capsys.readouterr().out.splitlines() == [
        "measure  before  change",
        "nDCG@10   0.679  +0.165",
        "[red]      10.1       -",
    ]


def test_a_table_keeps_long_and_hostile_cells_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    table([["x" * 500, "a\nb\tc\x1b[0m"]], ["text", "[b]heading[/b]"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("[b]heading[/b]")
    assert lines[1] == "x" * 500 + r"  a\nb\tc\x1b[0m"


def test_a_table_on_a_terminal_obeys_no_cell(screen: Terminal) -> None:
    table([["[bold]x", "\x1b[2J"], ["y", "1"]], ["a", "b"])
    shown = screen.getvalue()
    assert "[bold]x" in shown
    assert r"\x1b[2J" in shown
    assert "\x1b[2J" not in shown


def test_an_empty_table_has_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    table([], ["a", "b"])
    assert capsys.readouterr().out == "a  b\n"


def test_other_ranks_are_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    say("x")
    table([["1"]], ["a"])
    ProgressLine(1).update(1)
    handler = LogHandler()
    handler.emit(logging.makeLogRecord({"msg": "usual", "levelno": logging.INFO, "levelname": "INFO"}))
    assert capsys.readouterr() == ("", "")
    handler.emit(logging.makeLogRecord({"msg": "odd", "levelno": logging.WARNING, "levelname": "WARNING"}))
    assert capsys.readouterr().err == "warning: odd\n"


def test_log_lines_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    LogHandler().emit(logging.makeLogRecord({"msg": "bf16\x1b", "levelno": logging.INFO, "levelname": "INFO"}))
    assert capsys.readouterr().err == "info: bf16\\x1b\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3600, "1 h 00 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_in_a_log_file_is_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = ProgressLine(10_000, "train", clock=clock)
    for step in range(1, 10_001):
        clock.now += 0.1
        progress.update(step, loss=0.123456, speed="12.5 pairs/s")
    lines = capsys.readouterr().err.splitlines()
    assert 15 <= len(lines) <= 20
    assert lines[0] == "train 500/10,000  5%  loss 0.1235  speed 12.5 pairs/s  15 min 50 s left"
    assert lines[-1] == "train 10,000/10,000  100%  loss 0.1235  speed 12.5 pairs/s  took 16 min 40 s"


def test_progress_in_a_log_file_waits_ten_seconds_and_breaks_long_silence(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = ProgressLine(100, clock=clock)
    clock.now = 9.0
    progress.update(50)
    assert capsys.readouterr().err == ""
    clock.now = 301.0
    progress.update(51)  # less than a twentieth would be enough by now
    clock.now = 603.0
    progress.update(52)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_progress_of_a_resumed_run_counts_its_own_speed(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = ProgressLine(100, done=50, clock=clock)
    clock.now = 20.0
    progress.update(60)
    assert capsys.readouterr().err == "60/100  60%  1 min 20 s left\n"


def test_progress_on_a_terminal_is_one_line(screen: Terminal) -> None:
    clock = Clock()
    with ProgressLine(4, "encode", clock=clock) as progress:
        for done in (1, 2, 3):
            clock.now += 1
            progress.update(done, loss=0.5)
            (line,) = screen.lines()
            assert BAR.sub("BAR", line) == f"encode {done}/4  {done * 25}%  BAR  loss 0.5  {4 - done} s left"
    assert screen.lines()[1:] == [""]


def test_the_line_is_drawn_ten_times_a_second_at_most(screen: Terminal) -> None:
    clock = Clock()
    with ProgressLine(1000, clock=clock) as progress:
        for done in range(500):
            clock.now += 0.01
            progress.update(done)
        assert 45 <= screen.getvalue().count("left") <= 50


def test_the_bar_grows_with_the_share_done(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")  # then only what is done is drawn
    clock = Clock()
    lengths = []
    with ProgressLine(4, clock=clock) as progress:
        for done in (0, 1, 2, 3, 4):
            clock.now += 1
            progress.update(done)
            lengths.append(screen.lines()[0].count("━"))
    assert lengths == [0, 7, 15, 22, 30]


@pytest.mark.parametrize("columns", [20, 50, 60, 80])
def test_the_line_fits_a_narrow_window_and_wide_characters(
    columns: int, screen: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    clock = Clock()
    with ProgressLine(10, "漢字漢字", clock=clock) as progress:
        clock.now = 1.0
        progress.update(5, text="名前", loss=0.5)
        (line,) = screen.lines()
    assert line.startswith("漢字漢字 5/10")
    assert cell_len(line) <= columns
    assert line.endswith("…" if columns == 20 else "text 名前  loss 0.5  1 s left")
    assert bool(BAR.search(line)) == (columns > 50)  # the bar goes before the text does


def test_the_line_ends_by_itself_at_the_total(screen: Terminal) -> None:
    progress = ProgressLine(2)
    progress.update(2)
    progress.close()
    say("next")
    line, *below = screen.lines()
    assert line.endswith("took 0 s")
    assert below == ["next", ""]


def test_the_line_leaves_the_cursor_visible(screen: Terminal) -> None:
    clock = Clock()
    with ProgressLine(2, clock=clock) as progress:
        clock.now += 1
        progress.update(1)
        written = screen.getvalue()  # all that a killed run has written
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")


def test_what_is_said_meanwhile_stands_above_the_line(screen: Terminal) -> None:
    clock = Clock()
    path = "[b]/" + "long folder/" * 20
    with ProgressLine(10, clock=clock) as progress:
        clock.now = 1.0
        progress.update(5)
        say("saved a checkpoint \x1b[2J")
        table([["1"]], ["[b]"])
        LogHandler().emit(logging.makeLogRecord({"msg": path, "levelno": logging.INFO, "levelname": "INFO"}))
        print("of another library", file=sys.stderr)
        *above, line = screen.lines()
    assert above[0] == r"saved a checkpoint \x1b[2J"
    assert above[1] == "[b]"
    assert above[3:] == ["  1", f"info: {path}", "of another library"]
    assert BAR.sub("BAR", line) == "5/10  50%  BAR  1 s left"


def test_results_go_to_a_file_while_the_line_stands(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stdout=file, stderr=screen))
    clock = Clock()
    with ProgressLine(2, clock=clock) as progress:
        clock.now += 1
        progress.update(1)
        say("result")
        assert len(screen.lines()) == 1
    assert file.getvalue() == "result\n"


def test_a_task_within_a_task_has_the_line_to_itself(screen: Terminal) -> None:
    clock = Clock()
    with ProgressLine(10, "train", clock=clock) as outer:
        clock.now += 1
        outer.update(5)
        with ProgressLine(2, "evaluate", clock=clock) as inner:
            clock.now += 1
            inner.update(1)
            assert [line.split()[0] for line in screen.lines()] == ["evaluate"]
            inner.update(2)
        clock.now += 1
        outer.update(6)
    assert [line.split(" ")[0] for line in screen.lines()] == ["evaluate", "train", ""]


def test_a_signals_message_is_not_drawn_over(screen: Terminal) -> None:
    clock = Clock()
    with ProgressLine(10, "train", clock=clock) as progress:
        clock.now += 1
        progress.update(5)
        screen.write("\nbiencoder: SIGTERM\n")  # past rich, as the signal handler writes
        clock.now += 1
        progress.update(6)
    assert [line.split(" ")[0] for line in screen.lines()] == ["train", "biencoder:", "train", ""]


def test_nothing_to_do_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressLine(0).update(0)
    assert capsys.readouterr().err == "0/0  100%  took 0 s\n"
