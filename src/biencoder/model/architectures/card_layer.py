"""A layer of BERT and its kin over a packed row on a GPU, in few calls: hosts are slower than cards.

It computes what the layer's authors wrote (Vaswani et al. 2017, section 3; Devlin et al. 2019), rounded where autocast
rounds: products take half precision, the sums that run along the layers and the normalisations stay float32. Query, key
and value are one product. Weights are narrowed once a step, and their gradients leave the products in float32.

Shapes: T tokens in the row, D hidden size, I intermediate size, H heads, E size of a head.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu
from transformers.activations import GELUActivation

from biencoder.device.choice import HALF
from biencoder.model.architectures.native_layer import Parts, Products, products_of
from biencoder.model.attention import flash
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.packing import Packing

aten = torch.ops.aten


def run(layer: Any, hidden: Tensor, packing: Packing) -> Tensor:
    """``[1, T, D]`` -> ``[1, T, D]``, of a layer that :func:`runs`."""
    parts = Parts.of(layer)
    kind = hidden.device.type
    products = products_of(layer, parts, torch.get_autocast_dtype(kind))
    trained = tuple(p for part in parts for p in (part.weight, part.bias))
    with torch.autocast(kind, enabled=False):
        out: Tensor = _Layer.apply(hidden.squeeze(0), _plan(layer, packing), products, *trained)  # type: ignore[no-untyped-call]
    return out.unsqueeze(0)


def runs(layer: Any, hidden: Tensor) -> bool:
    """Whether this layer and input are of the kind that is written out here."""
    own = layer.attention.self
    kind = hidden.device.type
    return (
        flash.is_made_for(hidden.device, own.attention_head_size)
        and torch.is_autocast_enabled(kind)
        and torch.get_autocast_dtype(kind) in HALF.values()
        and hidden.dtype == torch.float32
        and isinstance(layer.intermediate.intermediate_act_fn, GELUActivation)
        and not own.is_decoder
        and all(type(part) in (nn.Linear, nn.LayerNorm) for part in Parts.of(layer))  # no adapter around one
    )


@dataclass(frozen=True)
class _Plan:
    """What a layer does to one chunk, beside its weights. The probabilities are those of dropout."""

    packing: Packing
    attention: AttentionSettings
    heads: int
    after_attention: float
    after_feed_forward: float
    epsilon: tuple[float, float]


def _plan(layer: Any, packing: Packing) -> _Plan:
    own, after, last = layer.attention.self, layer.attention.output, layer.output
    dropout = [module.p if layer.training else 0.0 for module in (own.dropout, after.dropout, last.dropout)]
    settings = AttentionSettings(own.scaling, dropout=dropout[0])
    epsilon = (after.LayerNorm.eps, last.LayerNorm.eps)
    return _Plan(packing, settings, own.num_attention_heads, dropout[1], dropout[2], epsilon)


class _Layer(torch.autograd.Function):
    """hidden -> x = norm(hidden + drop(attention(hidden))) -> norm(x + drop(down(gelu(up(x)))))."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, plan: _Plan, products: Products, *weights: Tensor) -> Tensor:
        gain, bias, last_gain, last_bias = weights[8], weights[9], weights[14], weights[15]
        narrow_TD = hidden_TD.to(products.up.dtype)
        qkv_TD = products.attention.output(narrow_TD)
        attended_THE, softmax, drawn = flash.forward(_heads(qkv_TD, plan.heads), plan.packing, plan.attention)
        projected_TD = products.output.output(attended_THE.flatten(1))
        first = _residual_norm(projected_TD, hidden_TD, gain, bias, plan.epsilon[0], plan.after_attention)
        x_TD = first.out.to(narrow_TD.dtype)
        up_TI = products.up.output(x_TD)
        down_TD = products.down.output(gelu(up_TI))
        last = _residual_norm(down_TD, first.out, last_gain, last_bias, plan.epsilon[1], plan.after_feed_forward)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(
                *(narrow_TD, qkv_TD, attended_THE, softmax, drawn, x_TD, up_TI, gain, bias, last_gain, last_bias),
                *first.kept,
                *last.kept,
            )
            ctx.plan, ctx.products = plan, products
        return last.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        narrow_TD, qkv_TD, attended_THE, softmax, drawn, x_TD, up_TI, *rest = ctx.saved_tensors
        gain, bias, last_gain, last_bias = rest[:4]
        first_kept, last_kept = rest[4:8], rest[8:]
        plan, products = ctx.plan, ctx.products
        last = _norm_gradient(gradients[0], last_kept, last_gain, last_bias, plan.after_feed_forward, x_TD.dtype)
        to_up_TI = aten.gelu_backward(products.down.input_gradient(last.to_input), up_TI)
        to_x_TD = last.to_residual + products.up.input_gradient(to_up_TI)
        first = _norm_gradient(to_x_TD, first_kept, gain, bias, plan.after_attention, x_TD.dtype)
        to_attended_THE = products.output.input_gradient(first.to_input).view_as(attended_THE)
        to_qkv_TD = torch.cat(
            [
                x.flatten(1)
                for x in flash.backward(
                    _heads(qkv_TD, plan.heads),
                    attended_THE,
                    softmax,
                    drawn,
                    to_attended_THE,
                    plan.packing,
                    plan.attention,
                )
            ],
            dim=1,
        )
        to_hidden = (
            first.to_residual + products.attention.input_gradient(to_qkv_TD) if ctx.needs_input_grad[0] else None
        )
        wanted = ctx.needs_input_grad[3:]
        if not any(wanted):
            return to_hidden, None, None, *(None for _ in wanted)
        to_own = products.attention.weight_gradient(to_qkv_TD, narrow_TD).chunk(3)
        to_own_bias = _sum_over_tokens(to_qkv_TD).chunk(3)
        to_weights = [
            *(x for pair in zip(to_own, to_own_bias, strict=True) for x in pair),
            *(
                products.output.weight_gradient(first.to_input, attended_THE.flatten(1)),
                _sum_over_tokens(first.to_input),
            ),
            *(first.to_gain, first.to_bias),
            *(products.up.weight_gradient(to_up_TI, x_TD), _sum_over_tokens(to_up_TI)),
            *(products.down.weight_gradient(last.to_input, gelu(up_TI)), _sum_over_tokens(last.to_input)),
            *(last.to_gain, last.to_bias),
        ]
        return to_hidden, None, None, *(x if w else None for x, w in zip(to_weights, wanted, strict=True))


def _heads(qkv_TD: Tensor, heads: int) -> flash.Heads:
    """Views of query, key and value: ``[T, H, E]`` each."""
    query, key, value = qkv_TD.unflatten(1, (3, heads, -1)).unbind(1)
    return query, key, value


class _Normed(NamedTuple):
    """Of a normalisation: the output in float32, and the sum, mean, deviation and mask that its gradient needs."""

    out: Tensor
    kept: tuple[Tensor, Tensor, Tensor, Tensor | None]


def _residual_norm(
    input_TD: Tensor, residual_TD: Tensor, gain: Tensor, bias: Tensor, epsilon: float, dropout: float
) -> _Normed:
    """Layer normalisation (Ba et al. 2016) of the residual and the input with dropout."""
    mask = None
    if dropout:
        input_TD, mask = torch.native_dropout(input_TD, dropout, True)
    sum_TD = residual_TD + input_TD
    out, mean, deviation = torch.native_layer_norm(sum_TD, sum_TD.shape[1:], gain, bias, epsilon)
    return _Normed(out, (sum_TD, mean, deviation, mask))


class _NormGradient(NamedTuple):
    to_residual: Tensor
    to_input: Tensor
    to_gain: Tensor
    to_bias: Tensor


def _norm_gradient(
    gradient_TD: Tensor, kept: Any, gain: Tensor, bias: Tensor, dropout: float, dtype: torch.dtype
) -> _NormGradient:
    sum_TD, mean, deviation, mask = kept
    to_sum, to_gain, to_bias = aten.native_layer_norm_backward(
        gradient_TD, sum_TD, sum_TD.shape[1:], mean, deviation, gain, bias, [True, True, True]
    )
    to_input = to_sum.to(dtype)
    if mask is not None:
        to_input = aten.native_dropout_backward(to_input, mask, 1 / (1 - dropout))
    return _NormGradient(to_sum, to_input, to_gain, to_bias)


def _sum_over_tokens(input_TD: Tensor) -> Tensor:
    return input_TD.sum(0, dtype=torch.float32)
