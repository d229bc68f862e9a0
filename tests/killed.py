"""A command in a process of its own, which is killed at a place of our choice: always there, and always in time."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

from fault_points import Armed

ARMED = """
import pickle, sys
from pathlib import Path
pickle.load(sys.stdin.buffer).arm(Path(sys.argv.pop(1)))
"""
COMMAND = "from biencoder.cli import main; main(sys.argv[1:])"


def kill_at(fault: Armed, folder: Path, code: str, *words: object) -> None:
    """Run a process that the fault kills, which must not come to its end before.

    Args:
        fault: the place.
        folder: the output folder, on whose files operations are counted.
        code: what the process runs, with ``sys`` and ``Path`` at hand: `COMMAND`, maybe after other statements.
        words: its arguments.
    """
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", ARMED + code, str(folder), *map(str, words)]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, input=pickle.dumps(fault), capture_output=True, env=environment)
    assert done.returncode == -signal.SIGKILL, f"not killed by {fault}: {done.stderr.decode()}"
