"""Encoded texts as training sees them: data, and the few functions by which texts are compared.

A head turns the hidden states of N texts into a :class:`Representation`. Training gathers representations over ranks,
cuts them loose from the graph, scores queries against passages, and sends gradients back. It does all that through the
functions below and never looks inside, so a new kind of representation is one class and no second trainer.

Shapes: N texts, B queries, P passages, G passages in the largest group, D dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

Kind = TypeVar("Kind", bound="Representation")
Places: TypeAlias = "tuple[int, ...]"


@dataclass(frozen=True, eq=False)
class Representation(ABC):
    """N encoded texts. Every field of a subclass is a tensor whose first dimension counts the texts.

    Fields of whole numbers, such as token ids, have no gradient. A subclass that keeps its tensors in another way has
    its own :attr:`tensors` and :meth:`with_tensors`.
    """

    @abstractmethod
    def scores(self: Kind, passages: Kind) -> Tensor:
        """The similarity of each of these queries to each passage: ``[B, P]``."""

    @abstractmethod
    def pair_scores(self: Kind, passages: Kind) -> Tensor:
        """The similarity of each query to the passage of the same number: ``[N]``."""

    @abstractmethod
    def group_scores(self: Kind, passages: Kind, groups_BG: Tensor) -> Tensor:
        """The similarity of each query to the passages that its row of ``groups_BG`` names: ``[B, G]``."""

    @abstractmethod
    def cosines(self: Kind, passages: Kind) -> Tensor:
        """The similarity of each query to the passage of the same number, from -1 to 1: ``[N]``."""

    @abstractmethod
    def cut(self: Kind, dim: int, *, normalize: bool) -> Kind:
        """The first ``dim`` dimensions, scaled to length 1 again if asked (Kusupati et al. 2022, section 3)."""

    @property
    def places(self) -> Places:
        """Places of each text in the second dimension of each tensor that has more of them for longer texts."""
        return ()

    def in_places(self: Kind, places: Places) -> Kind:  # noqa: ARG002 - one signature for all kinds
        """The same texts in so many places each; those behind the longest text hold zeros."""
        return self

    @property
    @abstractmethod
    def vectors(self) -> Tensor:
        """One vector for each text: ``[N, D]``."""

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self: Kind, texts: slice | Tensor) -> Kind:
        """The given texts, by number."""
        return self.map(lambda tensor: tensor[texts.to(tensor.device) if isinstance(texts, Tensor) else texts])

    def map(self: Kind, change: Callable[[Tensor], Tensor]) -> Kind:
        """The same texts with every tensor changed by a function that keeps or moves whole texts."""
        return self.with_tensors([change(tensor) for tensor in self.tensors])

    def as_leaves(self: Kind) -> Kind:
        """The same numbers, cut loose from the graph; they collect gradients, which are zero so far."""
        return self.map(_leaf)

    def in_float32(self: Kind) -> Kind:
        """The same texts with their numbers in float32."""
        return self.map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    def gradient(self: Kind) -> Kind:
        """The gradients that :meth:`as_leaves` has collected; zero where no loss depends on a tensor."""
        return self.map(lambda tensor: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)

    def plus(self: Kind, other: Kind) -> Kind:
        """The sum of two gradients."""
        mine, others = _alike([self, other])
        return mine.with_tensors([a + b for a, b in zip(mine.tensors, others.tensors, strict=True)])

    def backward(self: Kind, gradient: Kind) -> None:
        """Send the gradient of a loss with respect to these texts back into the weights that made them."""
        pairs = zip(self.tensors, gradient.in_places(self.places).tensors, strict=True)
        made, wanted = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
        torch.autograd.backward(made, wanted)

    def finite(self) -> Tensor:
        """Which texts are finite numbers throughout: bool ``[N]``."""
        return torch.stack([tensor.flatten(1).isfinite().all(dim=1) for tensor in self.tensors]).all(dim=0)

    @property
    def requires_grad(self) -> bool:
        """Whether gradients can be sent back."""
        return self.tensors[0].requires_grad

    @property
    def is_leaf(self) -> bool:
        """Whether gradients end here, see :meth:`as_leaves`."""
        return all(tensor.is_leaf for tensor in self.tensors)

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.tensors[0].device

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in an order of their own."""
        return [getattr(self, field.name) for field in fields(self)]

    def with_tensors(self: Kind, tensors: Sequence[Tensor]) -> Kind:
        """Other tensors in the place of these."""
        return replace(self, **{field.name: tensor for field, tensor in zip(fields(self), tensors, strict=True)})


def _leaf(tensor: Tensor) -> Tensor:
    leaf = tensor.detach().requires_grad_(tensor.is_floating_point())
    if leaf.requires_grad:
        leaf.grad = torch.zeros_like(leaf)
    return leaf


def concatenate(parts: Sequence[Kind]) -> Kind:
    """All texts of some representations, in order."""
    parts = _alike(parts)
    columns = zip(*(part.tensors for part in parts), strict=True)
    return parts[0].with_tensors([torch.cat(column) for column in columns])


def in_order(parts: Sequence[Kind], places: Sequence[Tensor]) -> Kind:
    """All texts of some representations, each at its place: int ``[n]`` for the n texts of a part."""
    return concatenate(parts)[torch.cat(list(places)).argsort()]


def _alike(parts: Sequence[Kind]) -> list[Kind]:
    """The same representations, in equally many places."""
    most = tuple(max(places) for places in zip(*(part.places for part in parts), strict=True))
    return [part.in_places(most) for part in parts]
