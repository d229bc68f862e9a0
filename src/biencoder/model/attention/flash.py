"""Attention over a whole packed row in one call of PyTorch's variable-length flash attention (Dao 2023), on a GPU.

``torch.nn.attention.varlen`` offers the same kernels to everybody, but without dropout. The operator below it takes
dropout, windows and fewer key heads than query heads, and has a gradient. It is no public interface, so this file alone
calls it, and looks at its schema first. Dropout draws from the CUDA generator: the same seed gives the same masks.

Shapes: S query tokens in the row, T tokens, N texts, H heads, K key/value heads (K divides H), E size of a head.
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

Heads = tuple[Tensor, Tensor, Tensor]  # query, key and value, ``[T, H, E]`` each

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
    query, key = (x.to(value_TKE.dtype).contiguous() for x in (query_THE, key_TKE))  # rotary positions widen them
    return forward((query, key, value_TKE.contiguous()), packing, settings)[0]


def attend_from(
    query_NHE: Tensor, key_THE: Tensor, value_THE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend_from`."""
    singles = packing.of_single_tokens
    rows = (_first(query_NHE, singles.tokens), _first(key_THE, packing.tokens), _first(value_THE, packing.tokens))
    attended, *_ = operator(
        *(x.to(value_THE.dtype).contiguous() for x in rows),
        *(singles.starts, packing.starts, singles.longest, packing.longest, settings.dropout, settings.causal, False),
        **_names(settings),
    )
    return with_zeros(attended, len(query_NHE))


def forward(heads: Heads, packing: Packing, settings: AttentionSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Attention within each text: the output ``[T, H, E]``, and what :func:`backward` needs where there is no graph.

    Rows behind the last text attend to each other, as further texts, and come out as numbers of no meaning. To cut them
    off would cost a row of zeros for each of query, key and value in the backward pass.
    """
    return operator(*heads, *_places(heads[0], packing, settings), False, **_names(settings))


def backward(
    heads: Heads,
    attended_THE: Tensor,
    softmax: Tensor,
    drawn: Tensor,
    gradient_THE: Tensor,
    packing: Packing,
    settings: AttentionSettings,
) -> Heads:
    """Gradients of query, key and value, ``[T, H, E]`` each, from those of the output."""
    places = _places(heads[0], packing, settings)
    unused = drawn.new_empty(())
    return backward_operator(gradient_THE, *heads, attended_THE, softmax, *places, drawn, unused, **_names(settings))


def _places(row_THE: Tensor, packing: Packing, settings: AttentionSettings) -> tuple[Any, ...]:
    """The arguments from ``cum_seq_q`` to ``is_causal``, for texts that attend to themselves."""
    starts = packing.starts_up_to(len(row_THE))
    return starts, starts, packing.longest, packing.longest, settings.dropout, settings.causal


def _names(settings: AttentionSettings) -> dict[str, Any]:
    reach = -1 if settings.window is None else settings.window - 1
    right = 0 if settings.causal else reach
    return {"scale": settings.scale, "window_size_left": reach, "window_size_right": right}


def operator(*places: Any, **names: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The call of the card, with :data:`PLACES` and :data:`NAMES`. Tests replace it.

    Returns:
        The output ``[S, H, E]``, the logarithms of the softmax's sums, and the state of the generator of dropout.
    """
    attended, softmax, drawn, *_ = torch.ops.aten._flash_attention_forward.default(*places, **names)
    return attended, softmax, drawn


def backward_operator(*places: Any, **names: Any) -> Heads:
    """The call of the card for the gradients of query, key and value. Tests replace it."""
    gradients: Heads = torch.ops.aten._flash_attention_backward.default(*places, **names)
    return gradients


def _first(rows: Tensor, count: int) -> Tensor:
    """The first rows. The kernels leave rows behind the last text unwritten; a slice costs a row of zeros backwards."""
    return rows if len(rows) == count else rows[:count]
