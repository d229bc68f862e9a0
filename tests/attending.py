"""Attention in the words of its formula: settings by name, with the usual scale."""

from typing import Any

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
