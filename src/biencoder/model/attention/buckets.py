"""Attention on a GPU where flash attention does not run: a few padded matrices instead of a row.

Float32, heads of odd sizes, a bias by distance, cards older than Ampere. The tokens of the row move into at most eight
matrices of texts of similar length, one call of attention each, and back: a layer takes a constant number of calls,
however many lengths there are.

Shapes: T tokens in the row, P places in the matrices, N texts of up to L tokens in a matrix, H heads, K key/value
heads, E size of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from biencoder.config.choices import CPU
from biencoder.model.attention.dropped import attention
from biencoder.model.attention.settings import AttentionSettings, ungrouped, with_zeros
from biencoder.model.packing import Packing, Padding


def runs(query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, settings: AttentionSettings) -> bool:  # noqa: ARG001
    """On every device but a CPU."""
    return query_THE.device.type != CPU


def attend(
    query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend`."""
    padding = packing.padding
    sides = (_matrices(row, padding) for row in ungrouped(query_THE, key_TKE, value_TKE))
    masks = settings.masks(packing)
    attended = []
    for query, key, value, real_NL, texts_N in zip(
        *sides, padding.matrices(padding.real), padding.matrix_texts, strict=True
    ):
        seen, causal = _seen(real_NL, settings, query.dtype)
        dropped = masks and masks.only(texts_N)
        out = attention(query, key, value, settings, dropped, seen=seen, causal=causal)
        attended.append(out.transpose(1, 2).flatten(0, 1))
    return with_zeros(_move(torch.cat(attended), padding.from_row, padding.to_row, padding.real), len(query_THE))


def attend_from(
    query_NHE: Tensor, key_THE: Tensor, value_THE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend_from`."""
    padding = packing.padding
    back = padding.texts.argsort()
    queries = _move(query_NHE, padding.texts, back).split([bucket.texts for bucket in padding.buckets])
    keys, values = _matrices(key_THE, padding), _matrices(value_THE, padding)
    masks = settings.masks(packing)
    keep_NHQL = None if masks is None else masks.keep_from(packing.used_places, query_NHE.shape[1], packing.longest)
    attended = []
    for query, key, value, real_NL, texts_N in zip(
        queries, keys, values, padding.matrices(padding.real), padding.matrix_texts, strict=True
    ):
        keep = None if keep_NHQL is None else keep_NHQL[texts_N, ..., : key.shape[2]]
        seen = real_NL[:, None, None, :]
        attended.append(attention(query.unsqueeze(2), key, value, settings, masks, seen=seen, keep=keep).squeeze(2))
    return with_zeros(_move(torch.cat(attended), back, padding.texts), len(query_NHE))


def _matrices(row_THE: Tensor, padding: Padding) -> list[Tensor]:
    """The padded matrices of a row, ready for attention: ``[N, H, L, E]`` each."""
    return [x.transpose(1, 2) for x in padding.matrices(_move(row_THE, padding.to_row, padding.from_row))]


def _seen(real_NL: Tensor, settings: AttentionSettings, dtype: torch.dtype) -> tuple[Tensor | None, bool]:
    """What a place sees, as :func:`~biencoder.model.attention.dropped.attention` takes it, or a causal mask instead.

    Padding lies behind a text, so a causal mask hides it. Under a window, a place of padding could be left with nothing
    to see, which gives no number; so it sees everything, and nobody looks at what comes out.
    """
    length = real_NL.shape[1]
    is_near = settings.window is not None and settings.window < length
    if settings.causal and not is_near and settings.bias_HLL is None:
        return None, True
    mask, seen = real_NL[:, None, None, :], settings.seen(length, real_NL.device)
    if seen is not None:
        mask = mask & seen | ~real_NL[:, None, :, None]
    if settings.bias_HLL is not None:
        mask = settings.bias_HLL[:, :length, :length].to(dtype).masked_fill(~mask, float("-inf"))
    return mask, False


def _move(rows: Tensor, index: Tensor, inverse: Tensor, real: Tensor | None = None) -> Tensor:
    """The rows at ``index``; ``inverse`` undoes it. ``real`` says which rows are no padding, where some are."""
    moved: Tensor = _Move.apply(rows, index, inverse, real)  # type: ignore[no-untyped-call]
    return moved


class _Move(torch.autograd.Function):
    """Rows by index, and their gradient by the inverse index: without a sum, and without zeros as large as the input.

    A place of padding may read any row, because no gradient comes back from it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor, real: Tensor | None) -> Tensor:
        ctx.save_for_backward(inverse, real)
        ctx.rows = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inverse, real = ctx.saved_tensors
        gradient = gradients[0].index_select(0, inverse)
        if real is not None:
            gradient = gradient * real.view(-1, *(1,) * (gradient.ndim - 1))
        return with_zeros(gradient, ctx.rows), None, None, None
