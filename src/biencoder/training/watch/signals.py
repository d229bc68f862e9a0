"""SIGTERM and SIGINT: a run finishes its step and writes a checkpoint before it ends.

Signals belong to the process, so what we know about them is kept for the process, not passed from function to function.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from biencoder.distributed import max_over_ranks, rank
from biencoder.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_asked = 0  # the signal that asked for the stop
_answered = 0  # the signal that the run has been told about
_in_steps = False  # the run can be stopped at the end of a step


@contextlib.contextmanager
def stops_by_signal() -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT raise :class:`~biencoder.errors.Stopped`; see also :func:`finishing_steps`.

    A signal that is ignored, as SIGINT is in the background of a shell script, stays ignored. Handlers can be set in
    the main thread only; in another thread the block changes nothing.
    """
    global _asked, _answered
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked = _answered = 0
    before = {each: signal.getsignal(each) for each in SIGNALS}
    for each in SIGNALS:
        if before[each] not in (None, signal.SIG_IGN):
            signal.signal(each, _hear)
    try:
        yield
    finally:
        for each, handler in before.items():
            if handler is not None:
                signal.signal(each, handler)


@contextlib.contextmanager
def finishing_steps() -> Iterator[None]:
    """Within the block, a signal waits until :func:`stop_asked` is called; a second SIGINT does not wait.

    Raises:
        Stopped: at the end of the block, for a signal that came after the last call, for example while the checkpoint
            of
            the last step was written. Otherwise this rank would save the model and another one would end at once.
    """
    global _in_steps
    _in_steps = True
    try:
        yield
    finally:
        _in_steps = False
    if _asked and not _answered:
        raise Stopped(_asked, "after the last step")


def stop_asked() -> int:
    """The signal that asked some rank to stop; 0 for none. All ranks call it, and all get the same answer."""
    global _answered
    _answered = max_over_ranks(_asked)
    return _answered


def _hear(number: int, _: FrameType | None) -> None:
    global _asked, _answered
    if not _in_steps or (_asked and number == signal.SIGINT):
        _answered = number
        raise Stopped(number)
    if not _asked and rank() == 0:
        end = "\n" if sys.stderr.isatty() else ""  # of the progress line
        name = signal.Signals(number).name
        text = f"{end}biencoder: {name}: stopping after this step, with a checkpoint; Ctrl-C stops at once\n"
        with contextlib.suppress(OSError):
            os.write(2, text.encode())  # not through a buffer that may be in use at this very moment
    _asked = number
