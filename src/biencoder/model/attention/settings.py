"""What attention does beside the tensors and the places of the texts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from biencoder.config.choices import CPU
from biencoder.model.masks import TextKeys, WeightMasks
from biencoder.model.packing import Packing


@dataclass(frozen=True)
class AttentionSettings:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1) within each text.

    Attributes:
        scale: factor on the scores.
        causal: a token sees itself and what precedes it.
        window: a token sees others at a distance below ``window`` only; None for all of them.
        dropout: probability, below 1, with which an attention weight is dropped.
        site: the number of the attention in its model, by which its masks of dropout differ from those of others.
        bias_HLL: added to the scores, for texts of up to L tokens (relative positions); None for no bias.
    """

    scale: float
    causal: bool = False
    window: int | None = None
    dropout: float = 0.0
    site: int = 0
    bias_HLL: Tensor | None = None

    def seen(self, length: int, device: torch.device) -> Tensor | None:
        """``[L, L]`` bool, True where a token of a text of that length sees another; None where each sees all."""
        near = self.window is not None and self.window < length
        if not self.causal and not near:
            return None
        position = torch.arange(length, device=device)
        distance = position[:, None] - position[None, :]
        seen = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        return seen if self.window is None else seen & (distance.abs() < self.window)

    def masks(self, packing: Packing) -> WeightMasks | None:
        """The masks of dropout; None for no dropout, and where a GPU's own generator makes them.

        On a CPU, texts without keys get drawn ones.
        """
        if not self.dropout or (packing.keys is None and packing.device.type != CPU):
            return None
        return WeightMasks.of(packing.keys or TextKeys.drawn(len(packing.lengths)), self.site, self.dropout)


def with_zeros(rows: Tensor, count: int) -> Tensor:
    """``count`` rows: the given ones, then zeros."""
    return rows if len(rows) == count else torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


def ungrouped(query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value with as many key heads as query heads (Ainslie et al. 2023, grouped-query attention)."""
    repeats = query_THE.shape[1] // key_TKE.shape[1]
    if repeats == 1:
        return query_THE, key_TKE, value_TKE
    return query_THE, key_TKE.repeat_interleave(repeats, dim=1), value_TKE.repeat_interleave(repeats, dim=1)
