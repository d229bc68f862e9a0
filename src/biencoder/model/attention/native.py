"""Attention within the texts of a packed row by compiled kernels (``kernels/attention.cpp``).

The backward pass makes the masks of dropout again, and two numbers for each token and head are kept of the softmax. So
memory grows with the tokens, not with their square.

Shapes: T tokens in the row, H heads, E size of a head.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from biencoder.config.choices import CPU
from biencoder.model.attention.settings import AttentionSettings, ungrouped
from biencoder.model.kernels.library import TYPES, address, is_narrow, kernels
from biencoder.model.masks import NO_WEIGHT_MASKS, WeightMasks
from biencoder.model.packing import Packing

HEAD_SIZES = 32  # and multiples of it


Heads = tuple[Tensor, Tensor, Tensor]  # query, key and value, ``[T, H, E]`` each


def runs(query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, settings: AttentionSettings) -> bool:
    """On a CPU that has kernels: query, key and value all in float32 or all in bf16, heads of n x 32, no bias."""
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    tensors = (query_THE, key_TKE, value_TKE)
    dtypes = {cast or x.dtype for x in tensors}  # kernels read all of them as one type
    fit = all(x.device.type == CPU and x.shape[-1] % HEAD_SIZES == 0 for x in tensors)
    return kernels() is not None and settings.bias_HLL is None and fit and len(dtypes) == 1 and dtypes.issubset(TYPES)


def attend(
    query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend`.

    The result has the precision of autocast where that is on. Products are of that precision, with sums in float32, and
    the softmax is float32.
    """
    rows = list(ungrouped(query_THE, key_TKE, value_TKE))
    if torch.is_autocast_enabled("cpu"):
        rows = [x.to(torch.get_autocast_dtype("cpu")) for x in rows]
    rows = [x if x.stride(-1) == 1 else x.contiguous() for x in rows]
    attended: Tensor = _NativeAttention.apply(*rows, MaskedAttention.of(packing, settings))  # type: ignore[no-untyped-call]
    return attended


class MaskedAttention(NamedTuple):
    """What a forward pass and its backward pass have in common: places, settings, and the masks of dropout."""

    packing: Packing
    settings: AttentionSettings
    masks: WeightMasks

    @classmethod
    def of(cls, packing: Packing, settings: AttentionSettings) -> "MaskedAttention":
        """With the masks that follow from the texts, or that are drawn now."""
        return cls(packing, settings, settings.masks(packing) or NO_WEIGHT_MASKS)


def forward(heads: Heads, masked: MaskedAttention, *, keep: bool) -> tuple[Tensor, Tensor | None]:
    """The output ``[T, H, E]``, and what :func:`backward` needs of the softmax, ``[2, H, T]``, if ``keep``."""
    tokens = masked.packing.tokens
    out = torch.empty(heads[0].shape, dtype=heads[0].dtype)
    out[tokens:] = 0
    softmax = torch.empty(2, out.shape[1], tokens) if keep else None
    _call("attention", [*heads, out], softmax, masked)
    return out, softmax


def backward(
    heads: Heads, out_THE: Tensor, softmax: Tensor, gradient_THE: Tensor, masked: MaskedAttention, into: Heads
) -> None:
    """Write the gradients of query, key and value ``into`` three tensors ``[T, H, E]``."""
    for tensor in into:
        tensor[masked.packing.tokens :] = 0
    _call("attention_backward", [*heads, out_THE, gradient_THE, *into], softmax, masked)


def _call(name: str, rows: list[Tensor], softmax: Tensor | None, masked: MaskedAttention) -> None:
    addresses = (ctypes.c_void_p * len(rows))(*(row.data_ptr() for row in rows))
    strides = (ctypes.c_int64 * (2 * len(rows)))(*(step for row in rows for step in row.stride()[:2]))
    _, heads, size = rows[0].shape
    starts, settings = masked.packing.starts, masked.settings
    getattr(kernels(), name)(
        is_narrow(rows[0]),
        addresses,
        strides,
        address(softmax),
        address(starts),
        len(starts) - 1,
        heads,
        size,
        ctypes.c_float(settings.scale),
        int(settings.causal),
        settings.window or 0,
        *masked.masks.words,
        torch.get_num_threads(),
    )


class _NativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, masked: MaskedAttention) -> Tensor:
        out, softmax = forward((query, key, value), masked, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(query, key, value, out, softmax)
        ctx.masked = masked
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, softmax = ctx.saved_tensors
        into = (torch.empty_like(out), torch.empty_like(out), torch.empty_like(out))
        backward((query, key, value), out, softmax, gradients[0].contiguous(), ctx.masked, into)
        return *into, None
