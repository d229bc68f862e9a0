"""The C allocator keeps freed memory, so that training does not take it from the system again in every step.

A training step takes and frees the same gigabytes again and again. By default glibc hands large pieces back to the
system at once. When they are taken again, the system clears every page of 4 KB: a quarter of a step. So we keep freed
memory, whatever its size, and put large tensors on pages of 2 MB where the system has them.
"""

import contextlib
import ctypes
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def tune_allocator() -> None:
    """Let this process's allocator keep what it has; only Linux with glibc needs that.

    Call it before the first tensor exists: PyTorch reads the variable for huge pages then.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if (libc := _glibc()) is not None:
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        libc.mallopt(M_MMAP_MAX, 0)


def give_back(beyond: int) -> None:
    """Return all free memory to the system if this process holds too much, also from between pieces in use.

    Args:
        beyond: bytes in use or kept up to which nothing is returned, because taking pages again is slow.
    """
    if (libc := _glibc()) is not None and held_bytes() > beyond:
        libc.malloc_trim(0)


def held_bytes() -> int:
    """Bytes that this process uses or keeps, without mapped files; 0 on systems that do not say."""
    return _status("RssAnon")


def resident_bytes() -> int:
    """Bytes that this process uses or keeps, with mapped files; 0 on systems that do not say."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The most that :func:`resident_bytes` has been in this process; 0 on systems that do not say.

    ``getrusage`` says another figure: on Linux, a process begins with the peak of the one that started it.
    """
    return _status("VmHWM")


def _status(name: str) -> int:
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
