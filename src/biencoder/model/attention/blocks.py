"""Attention by PyTorch's ``scaled_dot_product_attention``, one call for all neighbouring texts of one length.

It takes everything, so it is the last provider that is asked. On a CPU a call for each length costs little; a GPU would
wait for the next call most of the time, see :mod:`~biencoder.model.attention.buckets`.

Shapes: T tokens in the row, N texts of L tokens in a block, H heads, K key/value heads, E size of a head.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from biencoder.model.attention.settings import AttentionSettings, ungrouped
from biencoder.model.packing import Packing


def runs(query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, settings: AttentionSettings) -> bool:  # noqa: ARG001
    """Always."""
    return True


def attend(
    query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend`."""
    rows = ungrouped(query_THE, key_TKE, value_TKE)
    attended = []
    for block in packing.blocks:
        query, key, value = (block.heads_first(row) for row in rows)
        if settings.bias_HLL is not None:
            mask: Tensor | None = settings.bias_HLL[:, : block.length, : block.length].to(query.dtype)
            causal = False
        elif settings.window is None or block.length <= settings.window:
            mask, causal = None, settings.causal
        else:
            mask, causal = settings.seen(block.length, query.device), False
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=settings.dropout, is_causal=causal, scale=settings.scale
        )
        attended.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat([*attended, attended[0].new_zeros(len(query_THE) - packing.tokens, *attended[0].shape[1:])])


def attend_from(
    query_NHE: Tensor, key_THE: Tensor, value_THE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend_from`."""
    attended, first = [], 0
    for block in packing.blocks:
        query_NHQE = query_NHE[first : first + block.texts].unsqueeze(2)
        key_NHLE, value_NHLE = block.heads_first(key_THE), block.heads_first(value_THE)
        out = scaled_dot_product_attention(
            query_NHQE, key_NHLE, value_NHLE, dropout_p=settings.dropout, scale=settings.scale
        )
        attended.append(out.squeeze(2))
        first += block.texts
    return torch.cat([*attended, attended[0].new_zeros(len(query_NHE) - first, *attended[0].shape[1:])])
