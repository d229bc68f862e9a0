"""What retrieval needs from a model, and callbacks that report progress."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from biencoder.errors import UserError

if TYPE_CHECKING:
    import torch

Advance = Callable[[int], None]  # called with the number of texts done
StartProgress = Callable[[int, int], Advance]  # called once with the number of texts and the number already done


class TextEncoder(Protocol):
    """What retrieval needs from :class:`biencoder.model.encoder.Encoder`: texts to float32 vectors ``[N, D]``."""

    @property
    def dim(self) -> int:
        """Dimensions D of a vector."""

    @property
    def device(self) -> "torch.device":
        """Where texts are encoded, and vectors are searched."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal vectors."""

    def encode(self, texts: Sequence[str], prompt: str = "", progress: Advance | None = None) -> np.ndarray:
        """Vectors of texts under the given prompt; ``progress`` is called with the number done."""

    def encode_queries(self, texts: Sequence[str], progress: Advance | None = None) -> np.ndarray:
        """Vectors of queries under the model's query prompt."""

    def encode_passages(self, texts: Sequence[str], progress: Advance | None = None) -> np.ndarray:
        """Vectors of passages under the model's passage prompt."""

    def cut(self, vectors: np.ndarray, dim: int) -> np.ndarray:
        """The first ``dim`` dimensions of vectors, as the model would make them: ``[N, dim]``."""


def finite(vectors: np.ndarray, what: str, first: int = 0) -> np.ndarray:
    """The vectors, unchanged.

    Raises:
        UserError: a vector has values that are not finite. The message names it by ``what`` and its number, counted
            from ``first + 1``.
    """
    good = np.isfinite(vectors).all(axis=1)
    if not good.all():
        number = first + int(good.argmin()) + 1
        raise UserError(
            f"{what} {number}: the vector has values that are not finite; the model is damaged or has diverged"
        )
    return vectors


def shifted(progress: Advance | None, by: int) -> Advance | None:
    """A progress callback for a part that starts after ``by`` texts."""
    return None if progress is None else lambda done: progress(by + done)
