"""From the hidden states of a packed row to one vector a text: pure functions, named in :data:`POOLINGS`.

Shapes: T tokens in the row, N texts, D hidden size; ``starts`` ``[N + 1]`` is where each text begins, and the
row's end.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from biencoder.config.choices import CLS, LAST, MEAN


def cls_token(hidden_TD: Tensor, starts: Tensor) -> Tensor:
    """The first token of each text: ``[N, D]``."""
    return hidden_TD[first_of_each(starts)]


def last_token(hidden_TD: Tensor, starts: Tensor) -> Tensor:
    """The last token of each text, which is the only one that has seen them all in a causal model: ``[N, D]``."""
    return hidden_TD[last_of_each(starts)]


def first_of_each(starts: Tensor) -> Tensor:
    """Where each text's first token is: ``[N]``."""
    return starts[:-1]


def last_of_each(starts: Tensor) -> Tensor:
    """Where each text's last token is: ``[N]``."""
    return starts[1:] - 1


def mean_tokens(hidden_TD: Tensor, starts: Tensor) -> Tensor:
    """The mean over each text's tokens, summed in float32: ``[N, D]`` (Reimers and Gurevych 2019, section 3)."""
    return (mean_by_bags if hidden_TD.is_cpu else mean_by_segments)(hidden_TD.float(), starts)


def mean_by_bags(hidden_TD: Tensor, starts: Tensor) -> Tensor:
    """As bags of embeddings: on a CPU several times as fast as segments, and the same sums."""
    rows = torch.arange(len(hidden_TD), device=starts.device, dtype=starts.dtype)
    return embedding_bag(rows, hidden_TD, starts, mode="mean", include_last_offset=True)


def mean_by_segments(hidden_TD: Tensor, starts: Tensor) -> Tensor:
    """By segments of rows: on a GPU, bags would sort the rows to find their gradient."""
    return torch.segment_reduce(hidden_TD, "mean", offsets=starts, axis=0, unsafe=True)  # its checks would wait


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    CLS: cls_token,
    MEAN: mean_tokens,
    LAST: last_token,
}

# Poolings that take one token of each text, and where it is.
POOLED_TOKEN: dict[str, Callable[[Tensor], Tensor]] = {CLS: first_of_each, LAST: last_of_each}
