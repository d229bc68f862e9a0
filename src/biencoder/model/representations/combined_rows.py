"""Texts that have several representations, outside of PyTorch: all of them in the rows of one matrix.

Shapes: N texts, T rows of all texts, L rows of the longest text, W numbers in a row, D dimensions of the one vector.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from biencoder.model.representations.ragged import WORD_AND_WEIGHT, Ragged, rows_of

if TYPE_CHECKING:  # what reads vectors need not wait for PyTorch
    import torch
    from torch import Tensor

    from biencoder.model.representations.combined import Combined


@dataclass(frozen=True)
class Layout:
    """What stands where in the rows of a text.

    The first rows hold its one vector, as many numbers in each as fit. Each of the others holds a word and its weight,
    and then the vector of a token. A text that has more of one than of the other has zeros there.

    Attributes:
        dim: D; 0 for no such vector.
        words: whether words have weights.
        token_dim: dimensions of the vector of a token; 0 for none.
        weights: of the similarities of these parts in the sum.
    """

    dim: int
    words: bool
    token_dim: int
    weights: tuple[float, ...]

    @classmethod
    def of(cls, found: "Combined") -> "Layout":
        """The layout for what heads made."""
        dense, sparse, multi = found.dense, found.sparse, found.multi
        return cls(
            dim=0 if dense is None else dense.vectors_ND.shape[1],
            words=sparse is not None,
            token_dim=0 if multi is None else multi.tokens_NLD.shape[2],
            weights=found.weights,
        )

    @property
    def width(self) -> int:
        """W."""
        return WORD_AND_WEIGHT * self.words + self.token_dim

    @property
    def first(self) -> int:
        """Rows that hold the one vector."""
        return -(-self.dim // self.width)


@dataclass(frozen=True, eq=False)
class CombinedVectors(Ragged):
    """All that several heads make of some texts.

    Attributes:
        layout: what stands where in a row.
    """

    layout: Layout

    @classmethod
    def of(cls, found: "Combined") -> "CombinedVectors":
        """What the heads made, without the places that hold nothing."""
        import torch
        from torch.nn.functional import pad

        layout = Layout.of(found)
        rows_NLW, present_NL = _side_by_side(found)
        if found.dense is not None:
            spread = pad(found.dense.vectors_ND, (0, layout.first * layout.width - layout.dim))
            rows_NLW = torch.cat([spread.view(len(found), layout.first, layout.width), rows_NLW], dim=1)
            present_NL = pad(present_NL, (layout.first, 0), value=True)
        return cls(*rows_of(rows_NLW, present_NL), layout)

    def padded(self, device: "torch.device | None" = None) -> "Combined":
        """The same texts as heads make them."""
        import torch

        from biencoder.model.representations.combined import Combined
        from biencoder.model.representations.dense import Dense
        from biencoder.model.representations.multi_vector import MultiVector
        from biencoder.model.representations.representation import Representation
        from biencoder.model.representations.sparse import Sparse

        layout, parts = self.layout, list[Representation]()
        rows_NLW = torch.from_numpy(self.in_places()).to(device)
        first, rest = rows_NLW[:, : layout.first], rows_NLW[:, layout.first :]
        if layout.dim:
            parts.append(Dense(first.flatten(1)[:, : layout.dim]))
        if layout.words:
            parts.append(Sparse(rest[:, :, 1], rest[:, :, 0].long()))
        if layout.token_dim:
            parts.append(MultiVector(rest[:, :, -layout.token_dim :].contiguous()))
        return Combined(tuple(parts), layout.weights)

    def cut(self, dim: int) -> "CombinedVectors":
        """Not possible: the parts have different dimensions."""
        raise NotImplementedError("representations of several kinds cannot be cut to fewer dimensions")


def _side_by_side(found: "Combined") -> "tuple[Tensor, Tensor]":
    """Words with their weights beside vectors of tokens: ``[N, L, W]``, and whether there is either: ``[N, L]``."""
    import torch
    from torch.nn.functional import pad

    columns = []
    if found.sparse is not None:
        weights_NK, tokens_NK = found.sparse.weights_NK, found.sparse.tokens_NK
        columns.append((torch.stack([tokens_NK.float(), weights_NK], dim=2), weights_NK > 0))
    if found.multi is not None:
        columns.append((found.multi.tokens_NLD, found.multi.present))
    longest = max(present.shape[1] for _, present in columns)
    rows = [pad(rows, (0, 0, 0, longest - rows.shape[1])) for rows, _ in columns]
    present = [pad(present, (0, longest - present.shape[1])) for _, present in columns]
    return torch.cat(rows, dim=2), torch.stack(present).any(dim=0)
