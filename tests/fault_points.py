"""Places in a process at which a fault can be armed to come: its n-th file operation, the n-th call of a function."""

import errno
import fnmatch
import importlib
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

EVENTS = {
    "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.listdir", "os.scandir",
    "fcntl.flock",
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Armed:
    """A fault that comes from within the process."""

    def arm(self, folder: Path) -> None:
        """Let it come; ``folder`` is the output folder."""
        raise NotImplementedError


def kill() -> NoReturn:
    """What SIGKILL does: no handler, no clean-up, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@dataclass
class AtOperation(Armed):
    """Something happens right before the n-th operation on files of the output folder, as Python's audit events tell.

    Attributes:
        number: which, from 0.
        how: ``kill``; ``torn`` (of a file's fsync: half of what was written since the last one had come to the disk
            when the process was killed); ``full`` (no space is left on the device); ``list`` (nothing; they are only
            recorded).
        operation: only operations of this name count.
        path: only operations on paths inside the folder that match this pattern count.
        seen: operation and path of those that came so far.
    """

    number: int
    how: str = "kill"
    operation: str = "*"
    path: str = "*"
    seen: list[tuple[str, str]] = field(default_factory=list, repr=False)

    def arm(self, folder: Path) -> None:
        """Listen to the events, and to fsync, which has none."""
        self._folder = str(folder.absolute())
        # Bytes of each file that are on the disk.
        self._synced = {str(path): path.stat().st_size for path in folder.absolute().rglob("*") if path.is_file()}
        sys.addaudithook(self._hear)
        real = os.fsync

        def fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            folder = os.path.isdir(path)
            self._meet("fsync of a folder" if folder else "fsync", path, descriptor)
            real(descriptor)
            self._synced[path] = 0 if folder else os.fstat(descriptor).st_size

        setattr(os, "fsync", fsync)  # noqa: B010

    def write(self, path: Path) -> None:
        """Leave the list; ``path`` is outside of the folder."""
        path.write_text(json.dumps(self.seen))

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if (event in EVENTS and not isinstance(args[0], int)) or event == "fcntl.flock":
            self._meet(self._name(event, args), self._path(event, args), None)

    def _name(self, event: str, args: tuple[Any, ...]) -> str:
        if event == "open":
            return "create or write" if args[2] & WRITES else "read"
        return event.removeprefix("os.").removeprefix("fcntl.")

    def _path(self, event: str, args: tuple[Any, ...]) -> str:
        if event == "fcntl.flock":
            return os.readlink(f"/proc/self/fd/{args[0]}")
        path = os.fsdecode(args[0]) if args[0] is not None else "."
        directory = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}.get(event)
        if directory is not None and args[directory] >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{args[directory]}"), path)
        return os.path.abspath(path)

    def _meet(self, name: str, path: str, descriptor: int | None) -> None:
        if not path.startswith(self._folder):
            return
        inside = path.removeprefix(self._folder).lstrip("/")
        if not (fnmatch.fnmatchcase(name, self.operation) and fnmatch.fnmatchcase(inside, self.path)):
            return
        self.seen.append((name, inside))
        if len(self.seen) != self.number + 1:
            return
        if self.how == "torn":
            assert descriptor is not None
            size = os.fstat(descriptor).st_size
            os.truncate(descriptor, (size + min(size, self._synced.get(path, 0))) // 2)
        if self.how in ("torn", "kill"):
            kill()
        if self.how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


@dataclass
class AtCall(Armed):
    """The process gets a signal when a function of the library is called for the n-th time.

    Attributes:
        module: of the library, in which the function is looked up.
        function: its name there.
        number: which call, from 0.
        signal: which signal; after one that does not kill, the call is made.
    """

    module: str
    function: str
    number: int
    signal: int = signal.SIGKILL

    def arm(self, folder: Path) -> None:  # noqa: ARG002
        """Replace the function."""
        module = importlib.import_module(self.module)
        real, calls = getattr(module, self.function), iter(range(10**9))

        def hit(*args: Any, **named: Any) -> Any:
            if next(calls) == self.number:
                os.kill(os.getpid(), self.signal)
            return real(*args, **named)

        setattr(module, self.function, hit)
