"""Where transformers' models meet our attention: one row of tokens, the lengths of the texts in it, and no padding.

transformers hands every layer two things that a model's author does not have to know about: the attention function and
the mask, both looked up by name. We register one name for both. During a packed forward pass the "mask" that the model
passes from layer to layer *is* the :class:`~biencoder.model.packing.Packing`. So the unmodified model carries it to the
attention function, also through gradient checkpointing. Outside of a packed pass the name behaves as transformers' own
``sdpa``.

Shapes: T tokens in the row, H heads, K key/value heads, E size of a head.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from biencoder.model.attention.providers import attend
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.dropout import site_of
from biencoder.model.packing import Packing

IMPLEMENTATION = "biencoder_packed"

_active: ContextVar[Packing | None] = ContextVar("packing", default=None)


@contextlib.contextmanager
def packed(packing: Packing) -> Iterator[None]:
    """Forward passes inside of this block read their inputs as one packed row."""
    token = _active.set(packing)
    try:
        yield
    finally:
        _active.reset(token)


def active_packing() -> Packing | None:
    """The packing of the forward pass under way, if it is a packed one."""
    return _active.get()


def _mask(*args: Any, **kwargs: Any) -> Packing | Tensor | None:
    return _active.get() or sdpa_mask(*args, **kwargs)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Packing | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """The signature of transformers: query ``[1, H, T, E]``, key and value ``[1, K, T, E]`` -> ``[1, T, H, E]``."""
    if not isinstance(attention_mask, Packing):
        attended, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
        return attended, None
    own = getattr(module, "is_causal", False)
    causal = own if is_causal is None else is_causal
    if sliding_window is not None and own and not causal:
        sliding_window += 1  # a decoder that reads both ways: transformers' mask includes that distance there
    attended = attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        attention_mask,
        AttentionSettings(
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            causal=bool(causal),
            window=sliding_window,
            dropout=dropout,
            site=site_of(module),
        ),
    )
    return attended.unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)
