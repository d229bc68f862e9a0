"""Vectors of texts outside of PyTorch: a matrix where each text has one, or a row of vectors for each text.

Shapes: N texts, T vectors of all texts, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # what reads vectors need not wait for PyTorch
    import torch

    from biencoder.model.representations.multi_vector import MultiVector

Texts: TypeAlias = "slice | NDArray[np.integer]"


@dataclass(frozen=True, eq=False)
class TokenVectors:
    """The vectors of some texts, end to end.

    Attributes:
        vectors: ``[T, D]`` float32.
        starts: ``[N + 1]`` int64, where each text begins, and T.
    """

    vectors: NDArray[np.float32]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, found: "MultiVector") -> "TokenVectors":
        """What a head made, without the places that hold no vector."""
        present_NL = found.present
        starts = np.concatenate([[0], present_NL.sum(dim=1).cumsum(0).cpu().numpy()])
        return cls(found.tokens_NLD[present_NL].cpu().numpy(), starts)

    @classmethod
    def none(cls, dim: int) -> "TokenVectors":
        """No text at all."""
        return cls(np.empty((0, dim), np.float32), np.zeros(1, np.int64))

    @classmethod
    def joined(cls, parts: "Sequence[TokenVectors]") -> "TokenVectors":
        """All texts of one or more parts, in order."""
        vectors = np.concatenate([part.vectors for part in parts])
        lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.starts) for part in parts)])
        return cls(vectors, lengths.cumsum())

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, texts: Texts) -> "TokenVectors":
        """The given texts, by number; neighbours are not copied."""
        if isinstance(texts, slice):
            first, last, step = texts.indices(len(self))
            if step == 1:
                starts = self.starts[first : max(first, last) + 1]
                return TokenVectors(self.vectors[starts[0] : starts[-1]], starts - starts[0])
        firsts, lengths = self.starts[:-1][texts], np.diff(self.starts)[texts]
        starts = np.concatenate([[0], lengths.cumsum()])
        rows = np.arange(starts[-1]) + np.repeat(firsts - starts[:-1], lengths)
        return TokenVectors(self.vectors[rows], starts)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    @property
    def longest(self) -> int:
        """The vectors of the text that has the most of them."""
        return int(np.diff(self.starts).max(initial=1))

    def owner(self, vector: int) -> int:
        """The number of the text that a vector belongs to."""
        return int(np.searchsorted(self.starts, vector, "right")) - 1

    def padded(self, device: "torch.device | None" = None) -> "MultiVector":
        """The same texts as a head makes them."""
        import torch

        from biencoder.model.representations.multi_vector import MultiVector

        lengths = np.diff(self.starts)
        is_place_NL = np.arange(lengths.max(initial=0)) < lengths[:, None]
        tokens_NLD = np.zeros((*is_place_NL.shape, self.dim), np.float32)
        tokens_NLD[is_place_NL] = self.vectors
        return MultiVector(torch.from_numpy(tokens_NLD).to(device))

    def scores(self, passages: "TokenVectors") -> NDArray[np.float32]:
        """The similarity of each of these queries to each passage: ``[Q, P]``."""
        import torch

        with torch.no_grad():
            found: NDArray[np.float32] = self.padded().scores(passages.padded()).numpy()
        return found

    def cut(self, dim: int) -> "TokenVectors":
        """The first dimensions of each vector, scaled to length 1 again."""
        short = self.vectors[:, :dim]
        return TokenVectors(short / np.linalg.norm(short, axis=1, keepdims=True).clip(min=1e-12), self.starts)


Vectors: TypeAlias = "np.ndarray | TokenVectors"
AnyVectors = TypeVar("AnyVectors", np.ndarray, TokenVectors, Vectors)  # one kind in, the same kind out


def one_vector_each(vectors: Vectors) -> NDArray[np.float32]:
    """``[N, D]``: the vectors themselves, or the mean of each text's, scaled to length 1.

    Means are near where texts are. They are good enough to find neighbours that nobody ranks.
    """
    return vectors if isinstance(vectors, np.ndarray) else vectors.padded().vectors.numpy()


def in_order(parts: Sequence[tuple[NDArray[np.integer], Vectors]], dim: int) -> Vectors:
    """The vectors of all texts of some parts, each at the place that stands beside its part.

    Args:
        parts: places ``[n]`` and vectors of n texts; all places together are 0 to N - 1.
        dim: D.
    """
    places = np.concatenate([np.empty(0, np.int64), *(places for places, _ in parts)]).argsort()
    by_token = [vectors for _, vectors in parts if isinstance(vectors, TokenVectors)]
    if by_token:
        return TokenVectors.joined(by_token)[places]
    whole = [vectors for _, vectors in parts if isinstance(vectors, np.ndarray)]
    return np.concatenate([np.empty((0, dim), np.float32), *whole])[places]
