"""Memory that runs out: how it shows, and how all ranks learn of it before any of them goes on."""

import contextlib
from collections.abc import Iterator

import torch

from biencoder.distributed import max_over_ranks
from biencoder.errors import first_line

# What PyTorch, the C++ library, oneDNN and NVIDIA's libraries say in a plain RuntimeError; for GPU memory there is a
# type. oneDNN says the same of what it cannot do at all; that fails in the smallest chunk too, and is quoted then.
_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "could not create a memory object",
    "could not create a primitive",
    "could not execute a primitive",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class OutOfMemoryError(Exception):
    """Some rank lacks the memory for what all of them are about to do; raised on every rank."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` comes from an allocation that failed, on a CPU or a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


@contextlib.contextmanager
def memory_for_all() -> Iterator[None]:
    """A part of a step that finds its memory on all ranks, or fails on all of them.

    The part itself must not hold a collective. A rank that fails goes straight to the collective at the end of the
    part, where the others arrive too, so no rank waits for embeddings or gradients that never come.

    Raises:
        OutOfMemoryError: an allocation failed in the part, on any rank.
    """
    said = ""
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        said = first_line(error)
    if max_over_ranks(int(bool(said))):
        raise OutOfMemoryError(said or "in another process")
