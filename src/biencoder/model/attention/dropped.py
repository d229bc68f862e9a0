"""Scaled dot-product attention over padded texts: by PyTorch, or written out where our masks drop some of the weights.

PyTorch's ``scaled_dot_product_attention`` takes a probability of dropout, and no mask for it.

Shapes: N texts, H heads, Q queries, L keys, E size of a head.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from biencoder.config.choices import CPU
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.masks import WeightMasks


def attention(
    query_NHQE: Tensor,
    key_NHLE: Tensor,
    value_NHLE: Tensor,
    settings: AttentionSettings,
    dropped: WeightMasks | None,
    *,
    seen: Tensor | None = None,
    causal: bool = False,
    keep: Tensor | None = None,
) -> Tensor:
    """The output ``[N, H, Q, E]``.

    Args:
        query_NHQE: queries.
        key_NHLE: keys.
        value_NHLE: values.
        settings: scale; and dropout by the device's own generator, where there are no masks.
        dropped: the masks of dropout of these texts.
        seen: bool, True where a query sees a key, or what is added to the scores.
        causal: a query sees the keys up to its own place; ``seen`` is None then.
        keep: the masks ``[N, H, Q, L]`` where they are made already; None to make them here.
    """
    if dropped is None:
        return scaled_dot_product_attention(
            query_NHQE,
            key_NHLE,
            value_NHLE,
            attn_mask=seen,
            dropout_p=settings.dropout,
            is_causal=causal,
            scale=settings.scale,
        )
    if causal:
        seen = torch.ones(query_NHQE.shape[2], key_NHLE.shape[2], dtype=torch.bool, device=query_NHQE.device).tril()
    inputs = (query_NHQE, key_NHLE, value_NHLE, settings.scale, seen, dropped, keep)
    if keep is not None or query_NHQE.device.type == CPU:
        return _attention(*inputs)
    # The backward pass computes weights and masks again. PyTorch's attention on a GPU does not keep them either.
    attended: Tensor = checkpoint(_attention, *inputs, use_reentrant=False, preserve_rng_state=False)
    return attended


def _attention(
    query_NHQE: Tensor,
    key_NHLE: Tensor,
    value_NHLE: Tensor,
    scale: float,
    seen: Tensor | None,
    dropped: WeightMasks,
    keep: Tensor | None,
) -> Tensor:
    """Vaswani et al. 2017, eq. 1, with dropout of the weights."""
    scores = query_NHQE @ key_NHLE.transpose(2, 3) * scale
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf")) if seen.dtype == torch.bool else scores + seen
    if keep is None:
        keep = dropped.keep(scores.shape[1], scores.shape[3])
    weights = scores.softmax(-1) * dropped.factor * keep
    return weights.to(value_NHLE.dtype) @ value_NHLE
