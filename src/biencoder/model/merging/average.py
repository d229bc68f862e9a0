"""Averages of weights: along the straight line, and along the great circle. Pure functions of tensors."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST_ANGLE = 1e-6  # radians, and from the opposite too: below it the arc is the line but for float32's rounding


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``Σ wᵢ tᵢ`` (model soups, Wortsman et al., ICML 2022; of a base and its tuned model: WiSE-FT, CVPR 2022).

    The sum is float32, or float64 for more than two tensors. A tensor with weight 0 is left out altogether, so that
    weights 1 and 0 give the first tensor bit for bit.

    Args:
        tensors: of one shape.
        weights: as many; they sum to 1.

    Returns:
        The mean in the dtype of the first tensor. For tensors of integers (buffers): the first tensor.
    """
    first = tensors[0]
    if not first.is_floating_point():
        return first
    used = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0]
    if len(used) == 1:
        return used[0][0].to(first.dtype)
    precision = torch.promote_types(first.dtype, torch.float32 if len(used) == 2 else torch.float64)
    total = used[0][0].to(precision) * used[0][1]
    for tensor, weight in used[1:]:
        total.add_(tensor.to(precision), alpha=weight)
    return total.to(first.dtype)


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Spherical interpolation (Shoemake, SIGGRAPH 1985): ``(sin((1-s)Ω) a + sin(sΩ) b) / sin Ω``.

    Ω is the angle between the tensors, each as one vector. Two vectors of one length keep it on the arc; their mean is
    shorter. Parallel, opposite and zero tensors have no arc of their own, so they are interpolated on the line.

    Args:
        one: the tensor at ``share`` 0.
        other: the tensor at ``share`` 1, of the same shape.
        share: s, from 0 to 1.

    Returns:
        The tensor between them, in the dtype of ``one``.
    """
    if not one.is_floating_point() or share in (0, 1):
        return weighted_mean([one, other], [1 - share, share])
    angle = _angle(one, other)
    if math.sin(angle) < SMALLEST_ANGLE:
        return weighted_mean([one, other], [1 - share, share])
    precision = torch.promote_types(one.dtype, torch.float32)
    total = one.to(precision) * (math.sin((1 - share) * angle) / math.sin(angle))
    return total.add_(other.to(precision), alpha=math.sin(share * angle) / math.sin(angle)).to(one.dtype)


def _angle(one: Tensor, other: Tensor) -> float:
    """The angle between two tensors as vectors, in radians; 0 if one is zero.

    It is computed by the half-angle (Kahan), because a cosine in float32 cannot tell angles below 3e-4 from 0, and a
    tuned model is that close to its base.
    """
    precision = torch.promote_types(one.dtype, torch.float32)
    units = []
    for tensor in (one, other):
        length = _length(tensor)
        if length == 0:
            return 0.0
        units.append(tensor.to(precision) / length)
    return 2 * math.atan2(_length(units[0] - units[1]), _length(units[0] + units[1]))


def _length(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
