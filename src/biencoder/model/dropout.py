"""Attention with dropout on a CPU: batched products and a backward pass of its own.

PyTorch has no fused attention with dropout on a CPU. Its fallback draws each mask with a serial ``bernoulli_`` and
keeps three copies of the attention weights; here four masks come out of one 64-bit draw, and the weights are kept once.

Shapes: M attention problems (texts times heads), L tokens of a text, E size of a head.
"""

import math
from typing import Any

import torch
from torch import Tensor

LANES = 2**16  # a mask is decided by 16 random bits


def keep_mask(shape: tuple[int, ...], dropout: float) -> tuple[Tensor, float]:
    """Which elements stay, drawn from PyTorch's global CPU generator.

    Args:
        shape: of the mask.
        dropout: probability, rounded to a multiple of 2^-16, with which an element is False.

    Returns:
        The bool mask, and the factor that keeps the expectation: one over the exact probability of True.
    """
    count = math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    dropped = round(dropout * LANES)
    keep = draws.view(torch.int16)[:count] >= dropped - LANES // 2
    return keep.view(shape), LANES / (LANES - dropped)


def attend_with_dropout(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, causal: bool, mask: Tensor | None, dropout: float
) -> Tensor:
    """``scaled_dot_product_attention`` with dropout on the attention weights (Srivastava et al. 2014).

    Args:
        query: ``[..., L, E]``; key and value likewise.
        key: see query.
        value: see query.
        scale: factor on the scores; ``E ** -0.5`` when left out.
        causal: a token sees itself and what precedes it; with a mask, the mask alone decides.
        mask: ``[L, L]`` bool, True where a token may be seen.
        dropout: probability below 1.

    Returns:
        ``[..., L, E]``.
    """
    length, size = query.shape[-2:]
    if mask is None and causal:
        mask = torch.ones(length, length, dtype=torch.bool).tril()
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    flat = (x.reshape(-1, length, size) for x in (query, key, value))
    attended: Tensor = _Attention.apply(*flat, size**-0.5 if scale is None else scale, mask, dropout)  # type: ignore[no-untyped-call]
    return attended.view(query.shape)


class _Attention(torch.autograd.Function):
    """With P the softmax of the scores, K the mask and u its factor: out = u (P ∘ K) V."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None, dropout: float
    ) -> Tensor:
        weights_MLL = _weights(query, key, scale, mask)
        keep_MLL, factor = keep_mask(tuple(weights_MLL.shape), dropout)
        ctx.save_for_backward(query, key, value, weights_MLL, keep_MLL)
        ctx.scale, ctx.factor = scale, factor
        return torch.bmm(weights_MLL * keep_MLL, value).mul_(factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights_MLL, keep_MLL = ctx.saved_tensors
        gradient = gradients[0] * ctx.factor
        to_value = torch.bmm((weights_MLL * keep_MLL).transpose(1, 2), gradient)
        to_weights = torch.bmm(gradient, value.transpose(1, 2)).mul_(keep_MLL)
        to_scores = torch._softmax_backward_data(to_weights, weights_MLL, -1, weights_MLL.dtype)
        to_query = torch.bmm(to_scores, key).mul_(ctx.scale)
        to_key = torch.bmm(to_scores.transpose(1, 2), query).mul_(ctx.scale)
        return to_query, to_key, to_value, None, None, None


def _weights(query: Tensor, key: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """``[M, L, L]`` softmax of the scores, both in float32: scores rounded to bf16 double the gradient's error."""
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        scores_MLL = torch.bmm(query.to(wide) * scale, key.to(wide).transpose(1, 2))
        if mask is not None:
            scores_MLL.masked_fill_(~mask, float("-inf"))
        return torch.softmax(scores_MLL, dim=-1).to(query.dtype)
