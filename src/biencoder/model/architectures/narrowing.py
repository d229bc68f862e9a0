"""Weights of linear layers narrowed once for a whole step on a GPU.

Autocast narrows each weight in each forward pass and widens each gradient, one call of the card at a time, which takes
the host longer than the products of a small layer take the card. Here two calls do it for all weights. The numbers are
those of autocast.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from biencoder.config.choices import CUDA
from biencoder.device.choice import HALF
from biencoder.model.architectures.bert import bert_layers
from biencoder.model.parallel.sharded import is_sharded


class NarrowWeights:
    """Copies in half precision that stand in the places of weights, and collect their gradient."""

    def __init__(self, places: list[tuple[nn.Module, str, nn.Parameter]], dtype: torch.dtype) -> None:
        self._places = places
        self._weights = list({id(weight): weight for *_, weight in places}.values())
        copies = [torch.empty_like(weight, dtype=dtype) for weight in self._weights]
        if copies:
            torch._foreach_copy_(copies, [weight.detach() for weight in self._weights])
        self._copies = [
            nn.Parameter(copy, requires_grad=w.requires_grad) for copy, w in zip(copies, self._weights, strict=True)
        ]

    def put_in(self) -> None:
        """Let the layers multiply by the copies."""
        copy_of = dict(zip(map(id, self._weights), self._copies, strict=True))
        for module, name, weight in self._places:
            module._parameters[name] = copy_of[id(weight)]

    def take_out(self) -> None:
        """Let the layers have their weights again."""
        for module, name, weight in self._places:
            module._parameters[name] = weight

    def hand_over(self) -> None:
        """Add the gradient of the copies to that of the weights in float32, and forget it."""
        found = [(w, copy.grad) for w, copy in zip(self._weights, self._copies, strict=True) if copy.grad is not None]
        if not found:
            return
        wide = [torch.empty_like(weight) for weight, _ in found]
        torch._foreach_copy_(wide, [gradient for _, gradient in found])
        before: list[Tensor] = [weight.grad for weight, _ in found if weight.grad is not None]
        if len(before) == len(found):
            torch._foreach_add_(before, wide)
        else:
            for (weight, _), gradient in zip(found, wide, strict=True):
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
        for copy in self._copies:
            copy.grad = None


@contextlib.contextmanager
def narrow_weights(backbone: nn.Module, precision: str | None) -> Iterator[NarrowWeights]:
    """Inside of this block, linear layers multiply by copies in the precision of products, where that saves time.

    Their gradient is the weights' after :meth:`NarrowWeights.hand_over`. Layers of BERT and its kin look after their
    own weights, and sharded ones are gathered in that precision.
    """
    device = next(backbone.parameters()).device
    is_done = bool(bert_layers(backbone)) or is_sharded(backbone)
    saves_time = precision in HALF and device.type == CUDA and not is_done
    narrow = NarrowWeights(_places(backbone) if saves_time else [], HALF.get(precision or "", torch.bfloat16))
    narrow.put_in()
    try:
        yield narrow
    finally:
        narrow.take_out()


def _places(backbone: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Weights and biases in float32 of linear layers."""
    found: list[tuple[nn.Module, str, Any]] = []
    for module in backbone.modules():
        if type(module) is nn.Linear:
            found += [(module, name, weight) for name, weight in module._parameters.items() if weight is not None]
    return [each for each in found if each[2].dtype == torch.float32]
