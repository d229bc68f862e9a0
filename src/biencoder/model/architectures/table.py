"""Which architectures run packed, and where their positions start.

Packed equals padded for each of these, tested in ``tests/model/test_architectures.py``. An architecture that is not in
the table (DeBERTa's disentangled attention, say) runs in padded chunks sorted by length: slower, and as exact.
"""

import logging
import math
from collections.abc import Callable
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from biencoder.errors import UserError
from biencoder.model.architectures.feed_forward import spare_activations
from biencoder.model.architectures.last_layer import spare_last_layer
from biencoder.model.architectures.native_layer import use_native_layers
from biencoder.model.attention.interface import IMPLEMENTATION, Packing, active_packing, attend

logger = logging.getLogger(__name__)


class Config(Protocol):
    """What is read of a ``transformers`` configuration."""

    model_type: str
    pad_token_id: int | None


def _from_zero(_: Config) -> int:
    return 0


def _from_zero_if_causal(config: Config) -> int:
    if getattr(config, "use_bidirectional_attention", False):
        raise UserError(
            f"{config.model_type} with use_bidirectional_attention: transformers (5.23) attends to both sides without "
            "padding and to the left with it, so a text's vector would depend on its neighbours"
        )
    return 0


def _after_padding(config: Config) -> int:
    """RoBERTa and its kin number the positions from ``padding_idx + 1``."""
    if config.pad_token_id is None:
        raise ValueError(f"{config.model_type}: no pad_token_id, from which its positions are counted")
    return config.pad_token_id + 1


FIRST_POSITION: dict[str, Callable[[Config], int]] = {
    "bert": _from_zero,
    "distilbert": _from_zero,
    "electra": _from_zero,
    "ernie": _from_zero,
    "roberta": _after_padding,
    "xlm-roberta": _after_padding,
    "camembert": _after_padding,
    "mpnet": lambda _: 2,  # its padding_idx is 1 whatever the configuration says
    "modernbert": _from_zero,
    "nomic_bert": _from_zero,
    "gte": _from_zero,
    "eurobert": _from_zero,
    "qwen2": _from_zero,
    "qwen3": _from_zero,
    "llama": _from_zero,
    "mistral": _from_zero,
    "gemma": _from_zero_if_causal,
}


def enable_packing(backbone: nn.Module) -> int | None:
    """Let ``backbone`` take packed rows.

    Returns:
        The position of a text's first token, or None where the architecture does not pack exactly.
    """
    config: Any = backbone.config
    first = FIRST_POSITION.get(config.model_type)
    if first is None or has_own_code(backbone):
        kind = config.model_type
        logger.warning("%s: packing is not exact for this architecture; texts are padded in chunks by length", kind)
        return None
    config._attn_implementation = IMPLEMENTATION
    if config.model_type == "mpnet":
        _pack_mpnet(backbone)
    use_native_layers(backbone)
    spare_last_layer(backbone)
    spare_activations(backbone)
    return first(config)


def has_own_code(backbone: nn.Module) -> bool:
    """Whether the architecture's code came with the model, whatever name it gives itself."""
    return not type(backbone).__module__.startswith("transformers.")


def longest_text(config: Config) -> int | None:
    """Tokens that the position table has room for; None for models without one."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    return int(positions) - FIRST_POSITION.get(config.model_type, _from_zero)(config)


def _pack_mpnet(backbone: Any) -> None:
    """MPNet computes its attention itself and adds a bias by distance. Bound methods: a deep copy has its own."""
    encoder = backbone.encoder
    encoder.compute_position_bias = MethodType(_mpnet_position_bias, encoder)
    for layer in encoder.layer:
        layer.attention.attn.forward = MethodType(_mpnet_attention, layer.attention.attn)


def _mpnet_position_bias(encoder: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The bias is needed for the longest text only, not for the row."""
    packing = active_packing()
    if packing is not None:
        hidden = hidden[:, : max(packing.lengths)]
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
        scale=1 / math.sqrt(module.attention_head_size),
        dropout=module.dropout.p if module.training else 0.0,
        bias_HLL=position_bias[0],
    )
    return (module.o(attended.flatten(1)).unsqueeze(0),)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """MPNet adds its mask to the scores; ours is a table of what may be seen."""
    return like.new_zeros(mask.shape).masked_fill(~mask, float("-inf"))
