"""The followers of a run: started before its first step, told when it has ended, and never waited for long."""

import contextlib
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from biencoder.config import TrainConfig
from biencoder.distributed import rank
from biencoder.errors import require_package
from biencoder.terminal import say

WAIT = 5.0  # seconds for all followers together, at the end of a run
CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from biencoder.training.trackers.follower import main
main()
"""

logger = logging.getLogger(__name__)


def refuse_missing(names: Sequence[str]) -> None:
    """Raise `UserError` if the package of a tracker is not installed."""
    for name in names:
        require_package(name, f"--log-to {name}", name)


@contextlib.contextmanager
def followed(config: TrainConfig) -> Iterator[None]:
    """Within the block, each tracker that the configuration names shows the run; rank 0 starts them.

    If the block ends with an error, nobody waits: the followers end by themselves.
    """
    names = dict.fromkeys(config.log_to or ()) if rank() == 0 else ()
    followers = [_Started(name, config) for name in names]
    try:
        yield
        for follower in followers:
            follower.say_complete()
        deadline = time.monotonic() + WAIT
        for follower in followers:
            follower.wait(deadline)
    finally:
        for follower in followers:
            follower.let_go()


class _Started:
    """A follower's process, and the thread that repeats what it says.

    The process has a session of its own, so that Ctrl-C and a closed terminal do not reach it.
    """

    def __init__(self, name: str, config: TrainConfig) -> None:
        self._name = name
        self._log = config.output_dir / "trackers" / f"{name}.log"
        self._is_heard = False  # how it ended
        self._process = subprocess.Popen(
            [sys.executable, "-c", CODE, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        metrics = Path(config.output_dir).resolve() / "metrics.jsonl"
        self._write(json.dumps({"tracker": name, "metrics": str(metrics), "config": config.to_dict()}))
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def say_complete(self) -> None:
        """Tell it that the run came to its end."""
        self._write("complete")

    def wait(self, deadline: float) -> None:
        """Wait until it ends; say so if it takes too long."""
        self._listener.join(max(0.0, deadline - time.monotonic()))
        if self._listener.is_alive():
            logger.warning("%s has not taken all figures yet; it has another minute, in the background", self._name)

    def let_go(self) -> None:
        """Close what connects the two processes; it ends by itself."""
        assert self._process.stdin is not None
        self._is_heard = True
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.poll()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended, and the listener has said so
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._repeat(json.loads(line))
        if not self._is_heard:
            logger.warning("%s: its process ended (see %s); it shows no more figures", self._name, self._log)

    def _repeat(self, message: dict[str, str | int]) -> None:
        if "where" in message:
            say(f"{self._name}: {message['where']}")
        elif "failed" in message:
            logger.warning(
                "%s: %s. The run goes on, and the figures are in metrics.jsonl; %s is tried again now and then",
                self._name,
                message["failed"],
                self._name,
            )
        elif "missing" in message:
            self._is_heard = True
            if message["missing"]:
                logger.warning("%s lacks the last %s lines of metrics.jsonl", self._name, message["missing"])
