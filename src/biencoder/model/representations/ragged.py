"""What a model compares, outside of PyTorch: a matrix where each text has one vector, or several rows for each text.

Shapes: N texts, T rows of all texts, D numbers in a row.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # what reads vectors need not wait for PyTorch
    import torch

    from biencoder.model.representations.multi_vector import MultiVector
    from biencoder.model.representations.representation import Representation
    from biencoder.model.representations.sparse import Sparse

Texts: TypeAlias = "slice | NDArray[np.integer]"
Kind = TypeVar("Kind", bound="Ragged")
WORD_AND_WEIGHT = 2  # numbers in a row of a sparse text


@dataclass(frozen=True, eq=False)
class Ragged(ABC):
    """Rows of some texts, end to end; a text has as many as it needs.

    Attributes:
        vectors: ``[T, D]`` float32.
        starts: ``[N + 1]`` int64, where each text begins, and T.
    """

    vectors: NDArray[np.float32]
    starts: NDArray[np.int64]

    @abstractmethod
    def padded(self, device: "torch.device | None" = None) -> "Representation":
        """The same texts as a head makes them."""

    @abstractmethod
    def cut(self: Kind, dim: int) -> Kind:
        """The first dimensions, scaled to length 1 again."""

    def with_rows(self: Kind, vectors: NDArray[np.float32], starts: NDArray[np.int64]) -> Kind:
        """Other texts of the same kind."""
        return replace(self, vectors=vectors, starts=starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self: Kind, texts: Texts) -> Kind:
        """The given texts, by number; neighbours are not copied."""
        if isinstance(texts, slice):
            first, last, step = texts.indices(len(self))
            if step == 1:
                starts = self.starts[first : max(first, last) + 1]
                return self.with_rows(self.vectors[starts[0] : starts[-1]], starts - starts[0])
        firsts, lengths = self.starts[:-1][texts], np.diff(self.starts)[texts]
        starts = np.concatenate([[0], lengths.cumsum()])
        rows = np.arange(starts[-1]) + np.repeat(firsts - starts[:-1], lengths)
        return self.with_rows(self.vectors[rows], starts)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    @property
    def longest(self) -> int:
        """The rows of the text that has the most of them."""
        return int(np.diff(self.starts).max(initial=1))

    def owner(self, row: int) -> int:
        """The number of the text that a row belongs to."""
        return int(np.searchsorted(self.starts, row, "right")) - 1

    def scores(self: Kind, passages: Kind) -> NDArray[np.float32]:
        """The similarity of each of these queries to each passage: ``[Q, P]``."""
        import torch

        with torch.no_grad():
            found: NDArray[np.float32] = self.padded().scores(passages.padded()).numpy()
        return found

    def in_places(self) -> NDArray[np.float32]:
        """``[N, L, D]``, zeros behind the rows of each text; L is the number of the longest."""
        lengths = np.diff(self.starts)
        is_place_NL = np.arange(self.longest) < lengths[:, None]
        rows_NLD = np.zeros((*is_place_NL.shape, self.dim), np.float32)
        rows_NLD[is_place_NL] = self.vectors
        return rows_NLD


class TokenVectors(Ragged):
    """A vector for each token of a text."""

    @classmethod
    def of(cls, found: "MultiVector") -> "TokenVectors":
        """What a head made, without the places that hold no vector."""
        return cls(*rows_of(found.tokens_NLD, found.present))

    def padded(self, device: "torch.device | None" = None) -> "MultiVector":
        """The same texts as a head makes them."""
        import torch

        from biencoder.model.representations.multi_vector import MultiVector

        return MultiVector(torch.from_numpy(self.in_places()).to(device))

    def pooled(self, factor: int) -> "TokenVectors":
        """One vector for every ``factor`` vectors of a text, rounded up: the nearest are merged, two at a time.

        As Clavié, Chaffin and Adams 2024, "Reducing the Footprint of Multi-Vector Retrieval", with the cosine of the
        means of two groups as their nearness.
        """
        texts = [_merged(self[number : number + 1].vectors, factor) for number in range(len(self))]
        lengths = np.array([0, *(len(text) for text in texts)], np.int64)
        return TokenVectors(np.concatenate([np.empty((0, self.dim), np.float32), *texts]), lengths.cumsum())

    def cut(self, dim: int) -> "TokenVectors":
        """The first dimensions of each vector, scaled to length 1 again."""
        short = self.vectors[:, :dim]
        return TokenVectors(short / np.linalg.norm(short, axis=1, keepdims=True).clip(min=1e-12), self.starts)


class SparseVectors(Ragged):
    """The tokens of a text that weigh something: a row is a token's id, which float32 holds exactly, and its weight."""

    @classmethod
    def of(cls, found: "Sparse") -> "SparseVectors":
        """What a head made, without what weighs nothing."""
        import torch

        rows_NK2 = torch.stack([found.tokens_NK.float(), found.weights_NK], dim=2)
        return cls(*rows_of(rows_NK2, found.weights_NK > 0))

    @property
    def tokens(self) -> NDArray[np.int64]:
        """``[T]``."""
        return self.vectors[:, 0].astype(np.int64)

    @property
    def weights(self) -> NDArray[np.float32]:
        """``[T]``."""
        return self.vectors[:, 1]

    def padded(self, device: "torch.device | None" = None) -> "Sparse":
        """The same texts as a head makes them."""
        import torch

        from biencoder.model.representations.sparse import Sparse

        rows_NK2 = torch.from_numpy(self.in_places()).to(device)
        return Sparse(rows_NK2[:, :, 1], rows_NK2[:, :, 0].long())

    def cut(self, dim: int) -> "SparseVectors":
        """Not possible: the dimensions of a sparse row are words, and none comes before another."""
        raise NotImplementedError("sparse rows cannot be cut to fewer dimensions")


def joined(parts: Sequence[Kind]) -> Kind:
    """All texts of one or more parts, in order."""
    vectors = np.concatenate([part.vectors for part in parts])
    lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.starts) for part in parts)])
    return parts[0].with_rows(vectors, lengths.cumsum())


def _merged(vectors_LD: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """The means of groups of a text's vectors, of length 1, in the order of the groups' first vectors."""
    kept = -(-len(vectors_LD) // factor)
    sums_LD, means_LD = vectors_LD.copy(), vectors_LD.copy()
    near_LL = means_LD @ means_LD.T
    np.fill_diagonal(near_LL, -np.inf)
    is_group = np.ones(len(vectors_LD), np.bool_)
    for _ in range(len(vectors_LD) - kept):
        first, second = sorted(divmod(int(near_LL.argmax()), len(near_LL)))
        is_group[second] = False
        near_LL[second], near_LL[:, second] = -np.inf, -np.inf
        sums_LD[first] += sums_LD[second]
        means_LD[first] = sums_LD[first] / max(float(np.linalg.norm(sums_LD[first])), 1e-12)
        near_L = np.where(is_group, means_LD @ means_LD[first], -np.inf)
        near_L[first] = -np.inf
        near_LL[first], near_LL[:, first] = near_L, near_L
    return means_LD[is_group]


def rows_of(rows_NLD: "torch.Tensor", present_NL: "torch.Tensor") -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The rows that are present, end to end, and where those of each text begin."""
    starts = np.concatenate([[0], present_NL.sum(dim=1).cumsum(0).cpu().numpy()])
    return rows_NLD[present_NL].cpu().numpy(), starts


Vectors: TypeAlias = "np.ndarray | Ragged"
AnyVectors = TypeVar("AnyVectors", np.ndarray, TokenVectors, SparseVectors, Ragged, Vectors)  # the same comes out


def row_size(vectors: Vectors) -> int:
    """Numbers in a row: of a vector, of a word and its weight, or of all that several heads make of a token."""
    return vectors.dim if isinstance(vectors, Ragged) else int(vectors.shape[1])


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
    ragged = [vectors for _, vectors in parts if isinstance(vectors, Ragged)]
    if ragged:
        return joined(ragged)[places]
    whole = [vectors for _, vectors in parts if isinstance(vectors, np.ndarray)]
    return np.concatenate([np.empty((0, dim), np.float32), *whole])[places]
