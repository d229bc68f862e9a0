"""What the targets share: run libFuzzer over a function of bytes, with a seed corpus and libFuzzer's own flags."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris


def fuzz(target: Callable[[bytes], None], seeds: Sequence[bytes]) -> None:
    """Fuzz ``target``, which raises on a fault; arguments such as ``-max_total_time=600`` are libFuzzer's.

    What was found is kept in the folders that are named in the arguments, or in none.
    """
    with tempfile.TemporaryDirectory(prefix="biencoder-fuzz-") as folder:
        for number, seed in enumerate(seeds):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        named = [word for word in sys.argv[1:] if not word.startswith("-")]
        flags = [word for word in sys.argv[1:] if word.startswith("-")]
        # The first folder gets what is found; the others are read.
        atheris.Setup([sys.argv[0], "-max_len=4096", *flags, *named, folder], target)
        atheris.Fuzz()


class Place:
    """A file that is written anew for every input, in memory where the system has such a folder."""

    def __init__(self, name: str) -> None:
        shared = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
        self.path = Path(self._folder.name) / name
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, content: bytes) -> Path:
        """Write ``content`` over what was there."""
        self.path.write_bytes(content)
        return self.path


def require(true: bool, what: str) -> None:
    """A fault where something that must hold does not; unlike ``assert`` also under ``-O``."""
    if not true:
        raise RuntimeError(what)
