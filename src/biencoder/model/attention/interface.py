"""Attention over packed sequences: one row of tokens, the lengths of the texts in it, and no padding.

transformers hands every layer two things that a model's author does not have to know about: the attention function and
the mask, both looked up by name. We register one name for both. During a packed forward pass the "mask" that the model
passes from layer to layer *is* the :class:`Packing`, so the unmodified model carries it to the attention function, also
through gradient checkpointing. Outside of a packed pass the name behaves as transformers' own ``sdpa``.

Shapes: T tokens in the row, N texts, L length of a text, H heads, K key/value heads, E size of a head.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from biencoder.model.attention.cpu import Block, attend_on_cpu
from biencoder.model.attention.flash import Texts, attend_flash, flash_runs
from biencoder.model.attention.native import Setting, attend_natively, runs_natively
from biencoder.model.kernels import Dropout

IMPLEMENTATION = "biencoder_packed"


@dataclass(frozen=True)
class Run:
    """``count`` neighbouring texts of one ``length``, from token ``start`` of the row."""

    start: int
    count: int
    length: int

    @property
    def stop(self) -> int:
        """The token after the last."""
        return self.start + self.count * self.length

    def heads_first(self, row_THE: Tensor) -> Tensor:
        """A view of its texts in the row: ``[N, H, L, E]``."""
        texts_NLHE: Tensor = row_THE[self.start : self.stop].unflatten(0, (self.count, self.length))
        return texts_NLHE.transpose(1, 2)


@dataclass(frozen=True)
class Packing:
    """Where the texts lie in a packed row.

    Attention costs least when texts of equal length are neighbours: each such run is one batched product.

    The row may go on after the last text; attention gives zeros there.

    Attributes:
        lengths: of the texts.
        device: of the row.
        used: one token of each text, the only ones whose output is used, and then any; None for all tokens.
    """

    lengths: tuple[int, ...]
    device: torch.device
    used: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(self.lengths)

    @cached_property
    def runs(self) -> list[Run]:
        """The row cut into neighbouring texts of equal length."""
        runs, start = [], 0
        for length, texts in groupby(self.lengths):
            runs.append(Run(start, sum(1 for _ in texts), length))
            start = runs[-1].stop
        return runs

    @property
    def texts(self) -> Texts:
        """The same, as flash attention takes it."""
        return Texts(self.starts, max(self.lengths))

    @cached_property
    def starts(self) -> Tensor:
        """Where each text begins, and the end of the row: ``[N + 1]`` int32 (``cu_seqlens`` of flash attention)."""
        lengths = torch.tensor((0, *self.lengths), dtype=torch.int32)
        return lengths.cumsum(0, dtype=torch.int32).to(self.device)


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
        scale=scaling,
        causal=bool(causal),
        window=sliding_window,
        dropout=dropout,
    )
    return attended.unsqueeze(0), None


def attend(
    query_THE: Tensor,
    key_TKE: Tensor,
    value_TKE: Tensor,
    packing: Packing,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
    bias_HLL: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1) within each text of a packed row.

    Args:
        query_THE: ``[T, H, E]``.
        key_TKE: ``[T, K, E]``; K divides H (grouped-query attention).
        value_TKE: ``[T, K, E]``.
        packing: where the texts lie.
        scale: factor on the scores; ``E ** -0.5`` when left out.
        causal: a token sees itself and what precedes it.
        window: a token sees others at a distance below ``window`` only.
        dropout: probability with which an attention weight is dropped.
        bias_HLL: added to the scores, for texts of up to L tokens (relative positions).

    Returns:
        ``[T, H, E]``, contiguous.
    """
    if bias_HLL is None and flash_runs(value_TKE, dropout):
        texts = packing.texts
        return attend_flash(query_THE, key_TKE, value_TKE, texts, texts, scale=scale, causal=causal, window=window)
    repeats = query_THE.shape[1] // key_TKE.shape[1]
    if repeats > 1:
        key_TKE, value_TKE = (x.repeat_interleave(repeats, dim=1) for x in (key_TKE, value_TKE))
    if bias_HLL is None and runs_natively(query_THE, key_TKE, value_TKE):
        scale = query_THE.shape[-1] ** -0.5 if scale is None else scale
        setting = Setting(packing.starts, scale, causal, window or 0, Dropout(dropout))
        return attend_natively(query_THE, key_TKE, value_TKE, setting)
    if query_THE.device.type == "cpu" and bias_HLL is None and (dropout or torch.is_grad_enabled()):
        blocks = [
            Block(run.start, run.count, run.length, _seen(run.length, query_THE.device, causal, window))
            for run in packing.runs
        ]
        scale = query_THE.shape[-1] ** -0.5 if scale is None else scale
        return attend_on_cpu(query_THE, key_TKE, value_TKE, blocks, scale=scale, dropout=dropout)
    attended = []
    for run in packing.runs:
        query, key, value = (run.heads_first(x) for x in (query_THE, key_TKE, value_TKE))
        plain = bias_HLL is None and (window is None or run.length <= window)  # needs no mask
        if bias_HLL is not None:
            mask: Tensor | None = bias_HLL[:, : run.length, : run.length].to(query.dtype)
        else:
            mask = None if plain else _seen(run.length, query.device, causal, window)
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal and plain, scale=scale
        )
        attended.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat([*attended, attended[0].new_zeros(len(query_THE) - packing.tokens, *attended[0].shape[1:])])


def attend_from(
    query_NHE: Tensor, key_THE: Tensor, value_THE: Tensor, packing: Packing, *, scale: float, dropout: float
) -> Tensor:
    """Attention from one token of each text to all tokens of that text: ``[N, H, E]``.

    Args:
        query_NHE: ``[N, H, E]``, and further rows, which come out as zeros.
        key_THE: ``[T, H, E]``.
        value_THE: ``[T, H, E]``.
        packing: where the texts lie.
        scale: factor on the scores.
        dropout: probability with which an attention weight is dropped.
    """
    if flash_runs(value_THE, dropout):
        places = torch.arange(len(packing.lengths) + 1, dtype=torch.int32, device=packing.device)
        return attend_flash(query_NHE, key_THE, value_THE, Texts(places, 1), packing.texts, scale=scale)
    attended, first = [], 0
    for run in packing.runs:
        query_NHQE = query_NHE[first : first + run.count].unsqueeze(2)
        key_NHLE, value_NHLE = run.heads_first(key_THE), run.heads_first(value_THE)
        out = scaled_dot_product_attention(query_NHQE, key_NHLE, value_NHLE, dropout_p=dropout, scale=scale)
        attended.append(out.squeeze(2))
        first += run.count
    return torch.cat([*attended, attended[0].new_zeros(len(query_NHE) - first, *attended[0].shape[1:])])


def _seen(length: int, device: torch.device, causal: bool, window: int | None) -> Tensor | None:
    """``[L, L]`` bool, True where a token sees another; None where each sees all."""
    near = window is not None and window < length
    if not causal and not near:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    return seen if window is None else seen & (distance.abs() < window)


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)
