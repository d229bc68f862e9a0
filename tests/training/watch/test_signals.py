"""The tests of `signalled.py`, in a process of their own: a signal that nobody hears would end a worker of pytest."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).with_name("signalled.py")


def test_signals_are_heard() -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(TESTS)]
    done = subprocess.run(words, cwd=TESTS.parents[3], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
