"""Dropout on a CPU at a fraction of PyTorch's price: masks from 16 random bits each, drawn by a faster generator.

PyTorch decides each element with a draw of its own from a serial Mersenne twister (``bernoulli_``, about 6 ns an
element) and keeps the result as a number of the input's size. Here four masks come out of one 64-bit draw of SFC64
(0.5 ns a mask), and a mask is kept as one byte. It is an int8 because PyTorch multiplies by a bool four times slower.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LANES = 2**16  # a mask is decided by 16 random bits


def keep_mask(shape: tuple[int, ...], dropout: float) -> tuple[Tensor, float]:
    """Which elements stay: a function of the state of PyTorch's CPU generator, which it moves on by one draw.

    Args:
        shape: of the mask.
        dropout: probability, rounded to a multiple of 2^-16, with which an element is 0.

    Returns:
        The mask, int8, and the factor that keeps the expectation: one over the exact probability of 1.
    """
    count = math.prod(shape)
    seed = int(torch.randint(2**63 - 1, ()))
    draws = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-count // 4))).view(torch.int16)[:count]
    dropped = min(round(dropout * LANES), LANES - 1)
    return draws.ge_(dropped - LANES // 2).to(torch.int8).view(shape), LANES / (LANES - dropped)


class Dropout(nn.Dropout):
    """``nn.Dropout`` with the same distribution; on devices other than the CPU, the very same."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero each element with probability ``p`` while training, and scale the others (Srivastava et al. 2014)."""
        if not self.training or not 0 < self.p < 1 or input.device.type != "cpu":
            return nn.functional.dropout(input, self.p, self.training)
        dropped: Tensor = _Dropout.apply(input, self.p)  # type: ignore[no-untyped-call]
        return dropped


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, dropout: float) -> Tensor:
        keep, ctx.factor = keep_mask(tuple(input.shape), dropout)
        ctx.save_for_backward(keep)
        dropped: Tensor = (input * ctx.factor).mul_(keep)
        return dropped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (keep,) = ctx.saved_tensors
        return (gradients[0] * ctx.factor).mul_(keep), None


def use_fast_dropout(backbone: nn.Module) -> None:
    """Put :class:`Dropout` in the place of every ``nn.Dropout`` of ``backbone``."""
    for parent in list(backbone.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p).train(child.training))
