"""Attention over a whole packed row in one call of PyTorch's variable-length flash attention (Dao 2023), on a GPU.

Shapes: S query tokens in the row, T key tokens, N texts, H heads, K key/value heads (K divides H), E size of a head.
"""

from typing import NamedTuple

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


class Texts(NamedTuple):
    """Where N texts lie in a row: ``starts`` ``[N + 1]`` int32 with the row's end, and the ``longest`` one's length."""

    starts: Tensor
    longest: int


def flash_runs(value_TKE: Tensor, dropout: float) -> bool:
    """Whether it takes these values: half precision on CUDA. It has no dropout."""
    return value_TKE.is_cuda and value_TKE.dtype in HALF and not dropout


def attend_flash(
    query_SHE: Tensor,
    key_TKE: Tensor,
    value_TKE: Tensor,
    queries: Texts,
    keys: Texts,
    *,
    scale: float | None,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """Scaled dot-product attention of each text's queries to its own keys: ``[S, H, E]``.

    Args:
        query_SHE: ``[S, H, E]``.
        key_TKE: ``[T, K, E]``.
        value_TKE: ``[T, K, E]``, in half precision.
        queries: where each text's queries are.
        keys: where each text's keys are.
        scale: factor on the scores; ``E ** -0.5`` when left out.
        causal: a token sees itself and what precedes it.
        window: a token sees others at a distance below ``window`` only.
    """
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if window is None else window - 1
    query, key = (x.to(value_TKE.dtype).contiguous() for x in (query_SHE, key_TKE))  # rotary positions may widen them
    attended = varlen_attn(
        query,
        key,
        value_TKE.contiguous(),
        queries.starts,
        keys.starts,
        queries.longest,
        keys.longest,
        scale=scale,
        window_size=(reach, 0 if causal else reach),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, Tensor)  # a tuple only when auxiliary outputs are asked for
    return attended
