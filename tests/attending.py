"""Attention in the words of its formula: settings by name, with the usual scale."""

from collections.abc import Callable
from typing import Any

import torch
from tiny import relative_error
from torch import Tensor

from biencoder.model.attention import providers
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.packing import Packing


def attend(query: Tensor, key: Tensor, value: Tensor, packing: Packing, **settings: Any) -> Tensor:
    usual = {"scale": query.shape[-1] ** -0.5}
    return providers.attend(query, key, value, packing, AttentionSettings(**usual | settings))


def attend_from(query: Tensor, key: Tensor, value: Tensor, packing: Packing, **settings: Any) -> Tensor:
    usual = {"scale": query.shape[-1] ** -0.5}
    return providers.attend_from(query, key, value, packing, AttentionSettings(**usual | settings))


def check_expectation(attend_with: Callable[[float], Tensor]) -> None:
    """The mean over many masks is attention without dropout; a single mask is far from it."""
    plain = attend_with(0.0)
    torch.manual_seed(0)
    attended = [attend_with(0.3) for _ in range(2000)]
    assert relative_error(torch.stack(attended).mean(0), plain) < 0.02
    assert relative_error(attended[0], plain) > 0.1
