"""What retrieval needs of a model, and callbacks that hear how far it is."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from biencoder.errors import UserError

Advance = Callable[[int], None]  # is called with the number of texts done
StartProgress = Callable[[int, int], Advance]  # is called once with the number of texts, and of those done before


class TextEncoder(Protocol):
    """What retrieval needs of :class:`biencoder.model.encoder.Encoder`: texts to float32 vectors ``[N, D]``."""

    @property
    def dim(self) -> int:
        """Dimensions D of a vector."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal vectors."""

    def encode(self, texts: Sequence[str], prompt: str = "", progress: Advance | None = None) -> np.ndarray:
        """Vectors of texts under the prompt given; ``progress`` hears how many are done."""

    def encode_queries(self, texts: Sequence[str], progress: Advance | None = None) -> np.ndarray:
        """Vectors of queries under the model's query prompt."""

    def encode_passages(self, texts: Sequence[str], progress: Advance | None = None) -> np.ndarray:
        """Vectors of passages under the model's passage prompt."""

    def cut(self, vectors: np.ndarray, dim: int) -> np.ndarray:
        """The first dimensions of its vectors: ``[N, dim]``, as the model would make them."""


def finite(vectors: np.ndarray, what: str, first: int = 0) -> np.ndarray:
    """The vectors, unchanged.

    Raises:
        UserError: one has values that are not finite; it is named by ``what`` and its number, from ``first + 1``.
    """
    good = np.isfinite(vectors).all(axis=1)
    if not good.all():
        number = first + int(good.argmin()) + 1
        raise UserError(
            f"{what} {number}: the vector has values that are not finite; the model is damaged or has diverged"
        )
    return vectors


def shifted(progress: Advance | None, by: int) -> Advance | None:
    """Progress of a part that starts after ``by`` texts."""
    return None if progress is None else lambda done: progress(by + done)
