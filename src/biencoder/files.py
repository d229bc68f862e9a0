"""Files written whole or not at all."""

import contextlib
import fcntl
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from biencoder.errors import UserError

logger = logging.getLogger(__name__)


def refuse_filled(output_dir: Path) -> None:
    """Raise `UserError` unless ``--output-dir`` names an empty folder or nothing."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"--output-dir {output_dir}: exists and is not empty; name a new folder")


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; sync and rename it into place when the block ends without an error.

    Args:
        path: the file to write; its folder is made when missing.
        mode: ``"w"`` (UTF-8, newlines as written) or ``"wb"``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Make what was written to a file durable."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable (a no-op where folders cannot be opened)."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def open_claimed(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read and write, and lock it against other processes; it is created when missing.

    Raises:
        UserError: another process has locked it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(descriptor, "r+b") as file:
        claim(descriptor, path, being_written(path))
        # The process that had the lock may have renamed the file to its final name between the two lines above.
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise UserError(being_written(path))
        yield file


def being_written(path: Path) -> str:
    """The message for the second of two runs with one output."""
    return f"{path}: another run is writing to it; wait until it ends, or name another --output"


def claim(descriptor: int, path: Path, refusal: str) -> None:
    """Lock an open file or folder against other processes; the system unlocks it when this process closes it or ends.

    Raises:
        UserError: another process has the lock; the message is ``refusal``.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(refusal) from error
    except OSError as error:  # a file system without locks
        logger.info("%s cannot be locked (%s); do not start a second run there", path, error.strerror)


def beside(path: Path, suffix: str) -> Path:
    """The file of the same name with one more ending."""
    return path.with_name(path.name + suffix)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object, whole or not at all."""
    with atomic_write(path) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object that a file holds; None when there is no such file or it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@contextlib.contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turn what safetensors and tokenizers, written in Rust, say about a full disk into the `OSError` that it is."""
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None or isinstance(error, OSError):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


@contextlib.contextmanager
def room_for(what: str) -> Iterator[None]:
    """Say where ``what`` does not fit, if the folder for temporary files is full.

    Raises:
        UserError: a file there cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot store {what} in {tempfile.gettempdir()}: {error.strerror or error}; set TMPDIR to a folder with "
            "more room"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
