"""Who computes attention over a packed row: a table of providers that are asked in order.

Shapes: T tokens in the row, N texts, L length of a text, H heads, K key/value heads, E size of a head.
"""

from typing import Protocol

from torch import Tensor

from biencoder.model.attention import blocks, buckets, cpu, flash, native
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.packing import Packing


class Provider(Protocol):
    """A file of this folder that computes attention for some tensors and settings."""

    def runs(self, query: Tensor, key: Tensor, value: Tensor, settings: AttentionSettings, /) -> bool:
        """Whether it computes this."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, packing: Packing, settings: AttentionSettings, /
    ) -> Tensor:
        """See :func:`attend`."""


class ProviderFromOne(Provider, Protocol):
    """One that also computes attention from a single token of each text."""

    def attend_from(
        self, query: Tensor, key: Tensor, value: Tensor, packing: Packing, settings: AttentionSettings, /
    ) -> Tensor:
        """See :func:`attend_from`."""


# The first that runs is taken.
PROVIDERS: tuple[Provider, ...] = (flash, native, cpu, buckets, blocks)
PROVIDERS_FROM_ONE: tuple[ProviderFromOne, ...] = (flash, buckets, blocks)


def attend(
    query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """Attention within each text of a packed row.

    Args:
        query_THE: ``[T, H, E]``.
        key_TKE: ``[T, K, E]``; K divides H.
        value_TKE: ``[T, K, E]``.
        packing: where the texts lie.
        settings: scale, mask, dropout and bias.

    Returns:
        ``[T, H, E]``, contiguous; finite numbers of no meaning behind the last text.
    """
    provider = next(each for each in PROVIDERS if each.runs(query_THE, key_TKE, value_TKE, settings))
    return provider.attend(query_THE, key_TKE, value_TKE, packing, settings)


def attend_from(
    query_NHE: Tensor, key_THE: Tensor, value_THE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """Attention from one token of each text to all tokens of that text.

    Args:
        query_NHE: ``[N, H, E]``, and further rows, which come out as zeros.
        key_THE: ``[T, H, E]``.
        value_THE: ``[T, H, E]``.
        packing: where the texts lie.
        settings: scale and dropout; no mask and no bias.

    Returns:
        ``[N, H, E]``.
    """
    provider = next(each for each in PROVIDERS_FROM_ONE if each.runs(query_NHE, key_THE, value_THE, settings))
    return provider.attend_from(query_NHE, key_THE, value_THE, packing, settings)
