"""Memory that is kept to be used again: what the C allocator must be told before tensors come and go.

A training step takes and frees the same gigabytes again and again. By default glibc hands large pieces back to the
system at once, which clears every page again when they are next taken, 4 KB at a time: a quarter of a step. So freed
memory is kept, whatever its size, and large tensors lie on pages of 2 MB where the system has them.
"""

import contextlib
import ctypes
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def tune_allocator() -> None:
    """Set this process's allocator to keep what it has; no other system than Linux with glibc needs or gets it.

    PyTorch reads the variable for huge pages when it makes its first tensor, so this comes before.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if (libc := _glibc()) is not None:
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        libc.mallopt(M_MMAP_MAX, 0)


def give_back(beyond: int) -> None:
    """Return all free memory to the system, from between the pieces in use too, if this process holds too much.

    Args:
        beyond: bytes of memory in use or kept that are not too much; taking pages anew is slow.
    """
    if (libc := _glibc()) is not None and held_bytes() > beyond:
        libc.malloc_trim(0)


def held_bytes() -> int:
    """Memory of this process that is in use or kept, mapped files left out; 0 where the system does not say it."""
    return _status("RssAnon")


def resident_bytes() -> int:
    """Memory of this process, mapped files included; 0 where the system does not say it."""
    return _status("VmRSS")


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
