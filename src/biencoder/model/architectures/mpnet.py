"""MPNet on packed rows: it computes its attention itself and adds a bias by distance."""

import math
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from biencoder.model.attention.interface import active_packing
from biencoder.model.attention.providers import attend
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.dropout import site_of
from biencoder.model.packing import Packing


def patch_mpnet(backbone: Any) -> None:
    """Let MPNet's layers take packed rows. Bound methods: a deep copy has its own."""
    encoder = backbone.encoder
    encoder.compute_position_bias = MethodType(_mpnet_position_bias, encoder)
    for layer in encoder.layer:
        layer.attention.attn.forward = MethodType(_mpnet_attention, layer.attention.attn)


def _mpnet_position_bias(encoder: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The bias is needed for the longest text only, not for the row."""
    packing = active_packing()
    if packing is not None:
        hidden = hidden[:, : packing.longest]
    return type(encoder).compute_position_bias(encoder, hidden, *args, **kwargs)


def _mpnet_attention(
    module: Any, hidden: Tensor, attention_mask: Any = None, position_bias: Tensor | None = None, **kwargs: Any
) -> Any:
    if not isinstance(attention_mask, Packing):
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            attention_mask = _additive(attention_mask, hidden)
        return type(module).forward(module, hidden, attention_mask, position_bias, **kwargs)
    heads = (module.num_attention_heads, module.attention_head_size)
    query, key, value = (project(hidden[0]).unflatten(-1, heads) for project in (module.q, module.k, module.v))
    assert position_bias is not None
    attended = attend(
        query,
        key,
        value,
        attention_mask,
        AttentionSettings(
            scale=1 / math.sqrt(module.attention_head_size),
            dropout=module.dropout.p if module.training else 0.0,
            site=site_of(module),
            bias_HLL=position_bias[0],
        ),
    )
    return (module.o(attended.flatten(1)).unsqueeze(0),)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """MPNet adds its mask to the scores; ours is a table of what may be seen."""
    return like.new_zeros(mask.shape).masked_fill(~mask, float("-inf"))
