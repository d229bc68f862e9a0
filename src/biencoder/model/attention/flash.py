"""Attention over a whole packed row in one call of PyTorch's variable-length flash attention (Dao 2023), on a GPU.

Shapes: S query tokens in the row, T key tokens, N texts, H heads, K key/value heads (K divides H), E size of a head.
"""

import torch
from torch import Tensor

from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.packing import Packing

HALF = (torch.bfloat16, torch.float16)


def runs(query_SHE: Tensor, key_TKE: Tensor, value_TKE: Tensor, settings: AttentionSettings) -> bool:  # noqa: ARG001
    """Values in half precision on CUDA, without dropout and without a bias."""
    plain = not settings.dropout and settings.bias_HLL is None
    return value_TKE.is_cuda and value_TKE.dtype in HALF and plain


def attend(
    query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend`."""
    return _varlen(query_THE, key_TKE, value_TKE, packing, packing, settings)


def attend_from(
    query_NHE: Tensor, key_THE: Tensor, value_THE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend_from`."""
    single_tokens = Packing((1,) * len(packing.lengths), packing.device)
    return _varlen(query_NHE, key_THE, value_THE, single_tokens, packing, settings)


def _varlen(
    query_SHE: Tensor,
    key_TKE: Tensor,
    value_TKE: Tensor,
    queries: Packing,
    keys: Packing,
    settings: AttentionSettings,
) -> Tensor:
    """Attention of each text's queries to its own keys: ``[S, H, E]``."""
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if settings.window is None else settings.window - 1
    query, key = (x.to(value_TKE.dtype).contiguous() for x in (query_SHE, key_TKE))  # rotary positions may widen them
    attended = varlen_attn(
        query,
        key,
        value_TKE.contiguous(),
        queries.starts,
        keys.starts,
        queries.longest,
        keys.longest,
        scale=settings.scale,
        window_size=(reach, 0 if settings.causal else reach),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, Tensor)  # a tuple only when auxiliary outputs are asked for
    return attended
