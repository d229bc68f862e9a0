"""Attention within the texts of a packed row by compiled kernels (``native/attention.cpp``).

Masks of dropout are drawn again in the backward pass, and of the softmax two numbers a token and head are kept: its
memory grows with the tokens, not with their square.

Shapes: T tokens in the row, H heads, E size of a head.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from biencoder.model.kernels import TYPES, Dropout, address, is_narrow, kernels

HEAD_SIZES = 32  # and multiples of it


Heads = tuple[Tensor, Tensor, Tensor]  # query, key and value, ``[T, H, E]`` each


class Setting(NamedTuple):
    """What attention does beside the tensors.

    Attributes:
        starts: ``[N + 1]`` int32 on the CPU, where each text begins, and the last one's end; the row may go on.
        scale: factor on the scores.
        causal: a token sees itself and what precedes it.
        window: a token sees others at a distance below it only; 0 for all.
        dropout: of the weights.
    """

    starts: Tensor
    scale: float
    causal: bool
    window: int
    dropout: Dropout


def runs_natively(*tensors: Tensor) -> bool:
    """Whether there are kernels for query, key and value of this kind: on the CPU, float32 or bf16, heads of n x 32."""
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    dtypes = {cast or x.dtype for x in tensors}  # kernels read all of them as one type
    fit = all(x.device.type == "cpu" and x.shape[-1] % HEAD_SIZES == 0 for x in tensors)
    return kernels() is not None and fit and len(dtypes) == 1 and dtypes.issubset(TYPES)


def attend_natively(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, setting: Setting) -> Tensor:
    """``scaled_dot_product_attention`` within each text, with dropout on the attention weights.

    Args:
        query_THE: ``[T, H, E]``, float32 or bf16; key and value likewise.
        key_THE: see query.
        value_THE: see query.
        setting: see there.

    Returns:
        ``[T, H, E]``, contiguous, in the precision of autocast where that is on. Products are of that precision with
        sums in float32, and so is the softmax.
    """
    rows = [query_THE, key_THE, value_THE]
    if torch.is_autocast_enabled("cpu"):
        rows = [x.to(torch.get_autocast_dtype("cpu")) for x in rows]
    rows = [x if x.stride(-1) == 1 else x.contiguous() for x in rows]
    attended: Tensor = _Attention.apply(*rows, setting)  # type: ignore[no-untyped-call]
    return attended


def forward(heads: Heads, setting: Setting, *, keep: bool) -> tuple[Tensor, Tensor | None]:
    """The output ``[T, H, E]``, and what :func:`backward` needs of the softmax, ``[2, H, T]``, if ``keep``."""
    tokens = int(setting.starts[-1])
    out = torch.empty(heads[0].shape, dtype=heads[0].dtype)
    out[tokens:] = 0
    softmax = torch.empty(2, out.shape[1], tokens) if keep else None
    _call("attention", [*heads, out], softmax, setting)
    return out, softmax


def backward(
    heads: Heads, out_THE: Tensor, softmax: Tensor, gradient_THE: Tensor, setting: Setting, into: Heads
) -> None:
    """Write the gradients of query, key and value ``into`` three tensors ``[T, H, E]``."""
    for tensor in into:
        tensor[int(setting.starts[-1]) :] = 0
    _call("attention_backward", [*heads, out_THE, gradient_THE, *into], softmax, setting)


def _call(name: str, rows: list[Tensor], softmax: Tensor | None, setting: Setting) -> None:
    addresses = (ctypes.c_void_p * len(rows))(*(row.data_ptr() for row in rows))
    strides = (ctypes.c_int64 * (2 * len(rows)))(*(step for row in rows for step in row.stride()[:2]))
    _, heads, size = rows[0].shape
    getattr(kernels(), name)(
        is_narrow(rows[0]),
        addresses,
        strides,
        address(softmax),
        address(setting.starts),
        len(setting.starts) - 1,
        heads,
        size,
        ctypes.c_float(setting.scale),
        int(setting.causal),
        setting.window,
        *setting.dropout.words,
        torch.get_num_threads(),
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, setting: Setting) -> Tensor:
        out, softmax = forward((query, key, value), setting, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(query, key, value, out, softmax)
        ctx.setting = setting
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, softmax = ctx.saved_tensors
        into = (torch.empty_like(out), torch.empty_like(out), torch.empty_like(out))
        backward((query, key, value), out, softmax, gradients[0].contiguous(), ctx.setting, into)
        return *into, None
