"""Which architectures run packed, and where their positions start.

Packed equals padded for each of these, tested in ``tests/model/test_architectures.py``. An architecture that is not in
the table (DeBERTa's disentangled attention, say) runs in padded chunks sorted by length: slower, and as exact.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from biencoder.config.choices import FP16, FP32
from biencoder.errors import UserError
from biencoder.model.architectures.bert import patch_layers
from biencoder.model.architectures.mpnet import patch_mpnet
from biencoder.model.architectures.rms_norm import patch_rms_norms
from biencoder.model.architectures.static import STATIC
from biencoder.model.attention.interface import IMPLEMENTATION
from biencoder.model.parallel.sharded import class_of
from biencoder.terminal import say

logger = logging.getLogger(__name__)


class ModelConfig(Protocol):
    """What is read of a ``transformers`` configuration."""

    model_type: str
    pad_token_id: int | None


def _from_zero(_: ModelConfig) -> int:
    return 0


def _from_zero_if_causal(config: ModelConfig) -> int:
    if getattr(config, "use_bidirectional_attention", False):
        raise UserError(
            f"{config.model_type} with use_bidirectional_attention: transformers (5.23) attends to both sides without "
            "padding and to the left with it, so a text's vector would depend on its neighbours"
        )
    return 0


def _after_padding(config: ModelConfig) -> int:
    """RoBERTa and its kin number the positions from ``padding_idx + 1``."""
    if config.pad_token_id is None:
        raise ValueError(f"{config.model_type}: no pad_token_id, from which its positions are counted")
    return config.pad_token_id + 1


FIRST_POSITION: dict[str, Callable[[ModelConfig], int]] = {
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
    STATIC: _from_zero,
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
        patch_mpnet(backbone)
    patch_layers(backbone)
    patch_rms_norms(backbone)
    return first(config)


# Their activations exceed 65,504, the largest number of float16: Gemma 3's reach 800,000, T5's grow in its feed-forward
# layers. bf16 has the range of float32.
BEYOND_FLOAT16 = {"gemma2", "gemma3", "gemma3_text", "mt5", "t5", "t5gemma", "umt5"}


def fitting_precision(precision: str, config: ModelConfig, name: object) -> str:
    """The precision, or fp32, said, instead of fp16 for a model whose activations do not fit float16."""
    if precision != FP16 or config.model_type not in BEYOND_FLOAT16:
        return precision
    say(f"{name}: activations of {config.model_type} are too large for fp16, so it runs in fp32")
    return FP32


def has_own_code(backbone: nn.Module) -> bool:
    """Whether the architecture's code came with the model, whatever name it gives itself."""
    return not class_of(backbone).__module__.startswith(("transformers.", "biencoder."))


def longest_text(config: ModelConfig) -> int | None:
    """Tokens that the position table has room for; None for models without one."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    return int(positions) - FIRST_POSITION.get(config.model_type, _from_zero)(config)
