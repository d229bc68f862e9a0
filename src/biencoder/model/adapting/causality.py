"""Which way a decoder attends: to what precedes a token, or to the whole text.

transformers takes the choice from ``is_causal`` in the configuration, where an architecture honours it. Saved there, it
holds for everyone who loads the model. We refuse an architecture that does not honour it, so that no model is trained
in one way and loaded in another.
"""

from typing import Any

import torch
from torch import Tensor, nn

from biencoder.config.choices import BIDIRECTIONAL, CAUSAL
from biencoder.errors import UserError

CHANGE = 1e-4  # of a hidden state's norm: far above rounding, far below what another token does


def is_decoder(backbone: nn.Module) -> bool:
    """Whether the architecture is a language model's that reads from left to right, however it is used here."""
    return any(getattr(module, "is_causal", False) is True for module in backbone.modules())


def attention_of(backbone: nn.Module) -> str:
    """``causal`` or ``bidirectional``, as far as the model says so itself."""
    config: Any = backbone.config
    causal = is_decoder(backbone) and getattr(config, "is_causal", None) is not False
    return CAUSAL if causal else BIDIRECTIONAL


def set_attention(backbone: nn.Module, attention: str) -> None:
    """Let ``backbone`` attend as asked, and say so in its configuration.

    Raises:
        UserError: the architecture attends in one way only.
    """
    config: Any = backbone.config
    if attention != attention_of(backbone) and is_decoder(backbone):
        config.is_causal = attention == CAUSAL
    if any(seen != (attention == BIDIRECTIONAL) for seen in _looks_ahead(backbone)):
        raise UserError(
            f"--attention {attention}: transformers does not offer it for {config.model_type}; leave it out"
        )


@torch.no_grad()
def _looks_ahead(backbone: Any) -> list[bool]:
    """Whether the first token of a text sees the last one: without padding, and with padding behind the text."""
    training = backbone.training
    backbone.eval()
    cache = {"use_cache": False} if hasattr(backbone.config, "use_cache") else {}
    ids_NL = torch.tensor([[1, 2, 3, 1], [1, 2, 4, 1]], device=backbone.device)
    found = []
    for mask in ([1, 1, 1, 1], [1, 1, 1, 0]):
        mask_NL = torch.tensor([mask, mask], device=ids_NL.device)
        hidden_NLD: Tensor = backbone(input_ids=ids_NL, attention_mask=mask_NL, **cache).last_hidden_state
        one, other = hidden_NLD[:, 0]
        found.append(bool((one - other).norm() > CHANGE * one.norm()))
    backbone.train(training)
    return found
