"""Limits of memory that Linux sets on control groups, as containers and batch systems use them (man 7 cgroups)."""

import contextlib
from pathlib import Path

# Version 2 has one tree, in which memory.high is where Linux begins to slow a group down and to take pages from it.
# Version 1 has a tree for each thing; "no limit" is a number beyond any memory there.
_V2_FILES, _V1_FILES = ("memory.max", "memory.high"), ("memory.limit_in_bytes",)


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that this process's control groups, and those around them, may use; none where there are no limits.

    A container may show the names of its groups as the host has them, while ``root`` begins at its own. So every folder
    on the way from ``root`` counts, whether or not the names below it exist.

    Args:
        root: where the file systems of control groups are mounted.
        own: which groups the process is in: a line ``number:controllers:/path`` each, without controllers in version 2.
    """
    limits: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                limits += _limits_on_the_way(root, path, _V2_FILES)
            elif "memory" in controllers.split(","):
                limits += _limits_on_the_way(root / "memory", path, _V1_FILES)
    return limits


def _limits_on_the_way(root: Path, path: str, names: tuple[str, ...]) -> list[int]:
    limits = []
    innermost = root / path.strip("/")
    for group in (innermost, *innermost.parents):
        for name in names:
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                limits.append(int((group / name).read_text(encoding="ascii")))
        if group == root:
            break
    return limits
