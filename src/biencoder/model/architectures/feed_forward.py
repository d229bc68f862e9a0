"""The feed-forward network of a BERT layer without keeping its activation, which the backward pass computes again.

The input and the output of the GELU are half of what a layer keeps for the backward pass, and computing the output anew
from the input takes less than a hundredth of a step.

Shapes: T tokens, D hidden size, I intermediate size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear


def feed_forward(layer: Any, attended: Tensor) -> Any:
    """``[…, T, D]`` -> ``[…, T, D]``: what ``layer.feed_forward_chunk`` computes, where the activation is GELU."""
    output = layer.output
    if type(output.dense) is not nn.Linear:  # an adapter around it
        return type(layer).feed_forward_chunk(layer, attended)
    hidden = layer.intermediate.dense(attended)
    weight, bias = (x.to(hidden.dtype) for x in (output.dense.weight, output.dense.bias))  # narrower under autocast
    with torch.autocast(hidden.device.type, enabled=False):
        projected = _GeluLinear.apply(hidden, weight, bias)  # type: ignore[no-untyped-call]
    return output.LayerNorm(output.dropout(projected) + attended)


class _GeluLinear(torch.autograd.Function):
    """``gelu(x) W^T + b`` (Hendrycks and Gimpel 2016), of which x and W are kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight_DI: Tensor, bias_D: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight_DI)
        return linear(gelu(hidden), weight_DI, bias_D)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight_DI = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad
        gradient_TD = gradients[0].flatten(0, -2)
        to_hidden = torch.ops.aten.gelu_backward(gradients[0] @ weight_DI, hidden) if needs_hidden else None
        to_weight_DI = gradient_TD.t() @ gelu(hidden).flatten(0, -2) if needs_weight else None
        return to_hidden, to_weight_DI, gradient_TD.sum(0) if needs_bias else None
