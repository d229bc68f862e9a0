"""What retrieval needs from a model, and callbacks that report progress."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from biencoder.errors import UserError
from biencoder.model.representations.ragged import AnyVectors, Ragged, Vectors

if TYPE_CHECKING:
    import torch

Advance = Callable[[int], None]  # called with the number of texts done
StartProgress = Callable[[int, int], Advance]  # called once with the number of texts and the number already done


class TextEncoder(Protocol):
    """What retrieval needs from :class:`biencoder.model.encoder.Encoder`: what a model compares of texts."""

    @property
    def dim(self) -> int:
        """Dimensions D of a vector."""

    @property
    def kind(self) -> str:
        """What it makes of a text: ``dense``, ``multi`` or ``sparse``, or several of them with commas between."""

    @property
    def no_texts(self) -> Vectors:
        """What it makes of no text at all."""

    @property
    def words(self) -> Sequence[str]:
        """What the numbers of a sparse model's tokens stand for; not asked of other kinds."""

    @property
    def text_size(self) -> int:
        """About how many numbers a long text takes: those of its vector, or of the vectors of its tokens."""

    @property
    def device(self) -> "torch.device":
        """Where texts are encoded, and vectors are searched."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal vectors."""

    def represent_queries(
        self, texts: Sequence[str], progress: Advance | None = None, prompt: str | None = None
    ) -> Vectors:
        """A vector of each query, or vectors of its tokens; ``prompt`` stands before it, None for the model's."""

    def represent_passages(
        self, texts: Sequence[str], progress: Advance | None = None, prompt: str | None = None
    ) -> Vectors:
        """The same of passages."""

    def cut(self, vectors: AnyVectors, dim: int) -> AnyVectors:
        """The first ``dim`` dimensions of vectors, as the model would make them."""


def finite(vectors: AnyVectors, what: str, first: int = 0) -> AnyVectors:
    """The vectors, unchanged.

    Raises:
        UserError: a vector has values that are not finite. The message names it by ``what`` and its number, counted
            from ``first + 1``.
    """
    rows: np.ndarray = vectors.vectors if isinstance(vectors, Ragged) else vectors
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        number = first + 1 + (vectors.owner(bad[0]) if isinstance(vectors, Ragged) else int(bad[0]))
        raise UserError(
            f"{what} {number}: the vector has values that are not finite; the model is damaged or has diverged"
        )
    return vectors


def shifted(progress: Advance | None, by: int) -> Advance | None:
    """A progress callback for a part that starts after ``by`` texts."""
    return None if progress is None else lambda done: progress(by + done)
