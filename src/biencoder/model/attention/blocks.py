"""Attention in one call for all neighbouring texts of one length.

It takes everything, so it is the last provider that is asked. On a CPU a call for each length costs little; a GPU would
wait for the next call most of the time, see :mod:`~biencoder.model.attention.buckets`.

Shapes: T tokens in the row, N texts of L tokens in a block, H heads, K key/value heads, E size of a head.
"""

import torch
from torch import Tensor

from biencoder.model.attention.dropped import attention
from biencoder.model.attention.settings import AttentionSettings, ungrouped, with_zeros
from biencoder.model.packing import Packing


def runs(query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, settings: AttentionSettings) -> bool:  # noqa: ARG001
    """Always."""
    return True


def attend(
    query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend`."""
    rows, masks = ungrouped(query_THE, key_TKE, value_TKE), settings.masks(packing)
    attended = []
    for block in packing.blocks:
        query, key, value = (block.heads_first(row) for row in rows)
        if settings.bias_HLL is not None:
            seen: Tensor | None = settings.bias_HLL[:, : block.length, : block.length].to(query.dtype)
            causal = False
        elif settings.window is None or block.length <= settings.window:
            seen, causal = None, settings.causal
        else:
            seen, causal = settings.seen(block.length, query.device), False
        dropped = masks and masks.only(block.numbers)
        out = attention(query, key, value, settings, dropped, seen=seen, causal=causal)
        attended.append(out.transpose(1, 2).flatten(0, 1))
    return with_zeros(torch.cat(attended), len(query_THE))


def attend_from(
    query_NHE: Tensor, key_THE: Tensor, value_THE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend_from`."""
    attended, masks = [], settings.masks(packing)
    keep_NHQL = None if masks is None else masks.keep_from(packing.used_places, query_NHE.shape[1], packing.longest)
    for block in packing.blocks:
        query_NHQE = query_NHE[block.numbers].unsqueeze(2)
        key_NHLE, value_NHLE = block.heads_first(key_THE), block.heads_first(value_THE)
        keep = None if keep_NHQL is None else keep_NHQL[block.numbers, ..., : block.length]
        out = attention(query_NHQE, key_NHLE, value_NHLE, settings, masks, keep=keep)
        attended.append(out.squeeze(2))
    return with_zeros(torch.cat(attended), len(query_NHE))
