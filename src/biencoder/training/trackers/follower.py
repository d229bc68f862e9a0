"""A process that follows ``metrics.jsonl`` and shows its lines in a tracker.

The training process starts it and tells it two things: what to follow, and that the run has ended. The file is the
queue between them, so that training never waits for a tracker and no line is lost. A tracker that hangs hangs here. A
tracker that fails is tried again. If the training process is killed, this one sees the end of its standard input, shows
the lines that are left, and ends too.
"""

import contextlib
import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from biencoder.files import atomic_write, read_json
from biencoder.training.trackers.choice import open_tracker
from biencoder.training.trackers.tracker import FollowedRun, Tracker, figures_of

BETWEEN_LOOKS = 1.0  # seconds
BETWEEN_TRIES = 30.0  # seconds after a tracker has failed
LAST_SECONDS = 60.0  # in which this process ends once the run has ended, whatever the tracker does
MOST_LINES = 1000  # shown at a time

Tell = Callable[..., None]


class Follower:
    """Where a tracker stands in a file of figures, kept beside it for the process that resumes the run.

    A resumed run takes some steps again, and writes the same lines again. So the number of lines that the tracker has
    says which one comes next.

    Args:
        name: of the tracker.
        metrics: the file; it may not exist yet.
        config: of the run.
        tell: called with what the person should know.
    """

    def __init__(self, name: str, metrics: Path, config: dict[str, Any], tell: Tell) -> None:
        self._name, self._metrics, self._config, self._tell = name, metrics, config, tell
        self._state_path = state_path(metrics.parent, name)
        state = read_json(self._state_path) or {}
        self._id: str | None = state.get("id")
        self._shown: int = state.get("lines", 0)
        self._file: IO[bytes] | None = None
        self._skip, self._rest = self._shown, b""
        self._waiting: list[dict[str, Any]] = []
        self._tracker: Tracker | None = None
        self._has_failed = False

    def show(self) -> bool:
        """Show the lines that are new; return whether the tracker is open and has all of them."""
        try:
            tracker = self._tracker = self._tracker or self._open()
            self._read()
            while self._waiting:
                some = self._waiting[:MOST_LINES]
                tracker.log([figures_of(record) for record in some])
                del self._waiting[: len(some)]
                self._shown += len(some)
                self._save(tracker.id)
        except Exception as error:
            if not self._has_failed:
                self._tell(failed=_said(error))
            self._has_failed = True
            return False
        return True

    def finish(self, is_complete: bool) -> None:
        """Show the last lines and end the tracker's run."""
        if self.show() and self._tracker is not None:
            self._tracker.finish(is_complete)
        self._read()
        self._tell(missing=len(self._waiting))

    def _open(self) -> Tracker:
        folder = self._state_path.parent
        name = self._metrics.resolve().parent.name
        tracker = open_tracker(self._name, FollowedRun(name, self._id, folder, self._config))
        self._id = tracker.id
        self._save(tracker.id)
        self._tell(where=tracker.where)
        return tracker

    def _read(self) -> None:
        """Add whole lines that were written since the last time to those that wait."""
        if self._file is None:
            if not self._metrics.exists():
                return
            self._file = self._metrics.open("rb")
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        self._waiting += [json.loads(line) for line in lines[self._skip :]]
        self._skip = max(0, self._skip - len(lines))

    def _save(self, identity: str) -> None:
        with atomic_write(self._state_path) as file:
            file.write(json.dumps({"id": identity, "lines": self._shown}) + "\n")


def state_path(output_dir: Path, name: str) -> Path:
    """Where a follower keeps what its tracker has."""
    return output_dir / "trackers" / f"{name}.json"


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def main() -> None:
    """Follow what the first line of standard input names until standard input ends."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # the training process decides when this one ends
    os.nice(10)
    order = json.loads(sys.stdin.readline())
    metrics, name = Path(order["metrics"]), order["tracker"]
    tell = _messages(state_path(metrics.parent, name).with_suffix(".log"))
    ended, is_complete = threading.Event(), threading.Event()

    def wait_for_the_end() -> None:
        if sys.stdin.readline().strip() == "complete":
            is_complete.set()
        ended.set()
        threading.Event().wait(LAST_SECONDS)
        os._exit(1)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    follower = Follower(name, metrics, order["config"], tell)
    while not ended.is_set():
        ended.wait(BETWEEN_LOOKS if follower.show() else BETWEEN_TRIES)
    try:
        follower.finish(is_complete.is_set())
    except Exception as error:
        tell(failed=_said(error))
    os._exit(0)  # not through what a library does at the end of a process: it may wait for a server


def _messages(log: Path) -> Tell:
    """Keep standard output for messages, a JSON object a line; everything that libraries print goes to ``log``.

    The lock on the log makes a resumed run's follower wait for the one that a killed run has left.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

    def tell(**message: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            print(json.dumps(message), file=out, flush=True)

    return tell
