"""Attention over a whole packed row in one call of PyTorch's variable-length flash attention (Dao 2023), on a GPU.

``torch.nn.attention.varlen`` offers the same kernels to everybody, but without dropout. The operator below it takes
dropout, windows and fewer key heads than query heads, and has a gradient. It is no public interface, so this file alone
calls it, and looks at its schema first. Dropout draws from the CUDA generator: the same seed gives the same masks.

Shapes: S query tokens in the row, T key tokens, N texts, H heads, K key/value heads (K divides H), E size of a head.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from biencoder.device.choice import HALF
from biencoder.model.attention.settings import AttentionSettings, with_zeros
from biencoder.model.packing import Packing

HEAD_SIZES = 8  # and multiples of it
LARGEST_HEAD = 256
OLDEST = (8, 0)  # compute capability: Ampere
LARGE_HEAD = 192  # beyond it, the backward pass needs the shared memory of these cards
WITH_LARGE_HEADS = ((8, 0), (9, 0))

PLACES = (
    "query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal", "return_debug_mask",
)  # fmt: skip
NAMES = ("scale", "window_size_left", "window_size_right")

logger = logging.getLogger(__name__)


def runs(query_SHE: Tensor, key_TKE: Tensor, value_TKE: Tensor, settings: AttentionSettings) -> bool:  # noqa: ARG001
    """Values in half precision, without a bias, on a card and in heads that the kernels are made for."""
    plain = value_TKE.dtype in HALF.values() and settings.bias_HLL is None
    return plain and is_made_for(value_TKE.device, value_TKE.shape[-1])


def is_made_for(device: torch.device, size: int) -> bool:
    """Whether the kernels run on that device, for heads of that size, in both directions."""
    if device.type != "cuda" or size % HEAD_SIZES or size > LARGEST_HEAD or not _is_there():
        return False
    capability = _capability(device)
    return capability >= OLDEST and (size <= LARGE_HEAD or capability in WITH_LARGE_HEADS)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def _is_there() -> bool:
    """Whether this PyTorch was built with the kernels, under the operator that is called here."""
    if not torch.backends.cuda.is_flash_attention_available():
        return False
    if missing := missing_arguments():
        logger.warning(
            "PyTorch %s calls its flash attention differently (%s): attention runs in padded buckets, which is slower",
            torch.__version__,
            missing,
        )
    return not missing


def missing_arguments() -> str:
    """What the operator of this PyTorch lacks of what is passed to it; empty when it takes everything."""
    found = [argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    wrong = [name for place, name in enumerate(PLACES) if place >= len(found) or found[place] != name]
    return ", ".join([*wrong, *(name for name in NAMES if name not in found)])


def attend(
    query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend`."""
    return _attend(query_THE, key_TKE, value_TKE, packing, packing, settings)


def attend_from(
    query_NHE: Tensor, key_THE: Tensor, value_THE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend_from`."""
    return _attend(query_NHE, key_THE, value_THE, packing.of_single_tokens, packing, settings)


def _attend(
    query_SHE: Tensor, key_TKE: Tensor, value_TKE: Tensor, queries: Packing, keys: Packing, settings: AttentionSettings
) -> Tensor:
    """Attention of each text's queries to its own keys: ``[S, H, E]``, zeros behind the last text."""
    reach = -1 if settings.window is None else settings.window - 1
    rows = (_first(query_SHE, queries.tokens), _first(key_TKE, keys.tokens), _first(value_TKE, keys.tokens))
    attended = operator(
        *(x.to(value_TKE.dtype).contiguous() for x in rows),  # rotary positions may have widened query and key
        queries.starts,
        keys.starts,
        queries.longest,
        keys.longest,
        settings.dropout,
        settings.causal,
        False,
        scale=settings.scale,
        window_size_left=reach,
        window_size_right=0 if settings.causal else reach,
    )
    return with_zeros(attended, len(query_SHE))


def operator(*places: Any, **names: Any) -> Tensor:
    """The call of the card, with :data:`PLACES` and :data:`NAMES`: ``[S, H, E]``. Tests replace it."""
    attended: Tensor = torch.ops.aten._flash_attention_forward.default(*places, **names)[0]
    return attended


def _first(rows: Tensor, count: int) -> Tensor:
    """The first rows. The kernels leave rows behind the last text unwritten; a slice costs a row of zeros backwards."""
    return rows if len(rows) == count else rows[:count]
