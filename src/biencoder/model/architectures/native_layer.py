"""A layer of BERT and its kin over a packed row on a CPU: products, and what stands between them by kernels.

What a layer computes is as its authors wrote it (Vaswani et al. 2017, section 3; Devlin et al. 2019), and so is where
autocast rounds: products take bf16, the sums that run along the layers and the normalisations stay float32. Forward and
backward pass are written out, so that each of the four weights has one product a pass, every value between two products
is read and written once, and little is kept: no mask of dropout, no weights of attention, no activation.

Shapes: T tokens in the row, D hidden size, I intermediate size, H heads, E size of a head.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import GELUActivation

from biencoder.model.attention import native as attention
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.dropout import masks_of, site_of
from biencoder.model.kernels.library import address, is_narrow, kernels
from biencoder.model.kernels.linear import Linear, linear
from biencoder.model.masks import RowMasks
from biencoder.model.packing import Packing

WIDTHS = 32  # hidden and intermediate sizes that the kernels take, and multiples of it


def run(layer: Any, hidden: Tensor, packing: Packing) -> Tensor:
    """``[1, T, D]`` -> ``[1, T, D]``, of a layer that :func:`runs`."""
    parts = Parts.of(layer)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
    trained = tuple(p for part in parts for p in (part.weight, part.bias))
    row = hidden.squeeze(0).contiguous()
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _Layer.apply(  # type: ignore[no-untyped-call]
            row, _plan(layer, hidden, packing), products_of(layer, parts, dtype), dtype, *trained
        )
    return out.unsqueeze(0)


def runs(layer: Any, hidden: Tensor) -> bool:
    """Whether there are kernels for this layer and input."""
    own = layer.attention.self
    return (
        kernels() is not None
        and hidden.device.type == "cpu"
        and hidden.dtype == torch.float32
        and own.attention_head_size % attention.HEAD_SIZES == 0
        and hidden.shape[-1] % WIDTHS == 0
        and layer.intermediate.dense.out_features % WIDTHS == 0
        and torch.get_autocast_dtype("cpu") in (torch.bfloat16, torch.float32)
        and isinstance(layer.intermediate.intermediate_act_fn, GELUActivation)
        and not own.is_decoder
        and all(type(part) in (nn.Linear, nn.LayerNorm) for part in Parts.of(layer))  # no adapter around one
    )


class Parts(NamedTuple):
    """The modules of a layer that hold weights."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    norm: nn.LayerNorm

    @staticmethod
    def of(layer: Any) -> "Parts":
        """Where they are in transformers' BERT."""
        own, after = layer.attention.self, layer.attention.output
        return Parts(
            own.query,
            own.key,
            own.value,
            after.dense,
            after.LayerNorm,
            layer.intermediate.dense,
            layer.output.dense,
            layer.output.LayerNorm,
        )


class Products(NamedTuple):
    """The linear layers as this step multiplies by them: query, key and value are one, with outputs ``[3D]``."""

    attention: Linear
    output: Linear
    up: Linear
    down: Linear


_laid_out: ContextVar[dict[Any, Products] | None] = ContextVar("products", default=None)


@contextlib.contextmanager
def prepared_weights() -> Iterator[None]:
    """Inside of this block weights do not change, so that they are laid out once and not for each chunk.

    A block inside of another one begins with what that one has laid out, and keeps the rest to itself.
    """
    token = _laid_out.set(dict(_laid_out.get() or {}))
    try:
        yield
    finally:
        _laid_out.reset(token)


def prepared_bytes() -> int:
    """Memory of what is laid out so far, inside of :func:`prepared_weights`."""
    return sum(product.nbytes for made in (_laid_out.get() or {}).values() for product in made)


def products_of(layer: Any, parts: Parts, dtype: torch.dtype) -> Products:
    """The linear layers of a layer in the precision of its products, as they were laid out before if they were."""
    laid_out, backward = _laid_out.get(), torch.is_grad_enabled()
    if laid_out is not None and (made := laid_out.get((layer, dtype, backward)) or laid_out.get((layer, dtype, True))):
        return made
    joined = ((parts.query, parts.key, parts.value), (parts.output,), (parts.up,), (parts.down,))
    made = Products(*(linear(modules, dtype, backward=backward) for modules in joined))
    if laid_out is not None:
        laid_out[layer, dtype, backward] = made
    return made


@dataclass(frozen=True)
class _Plan:
    """What a layer does to one chunk, beside its weights."""

    attention: attention.MaskedAttention
    heads: int
    after_attention: RowMasks
    after_feed_forward: RowMasks
    epsilon: tuple[float, float]


def _plan(layer: Any, hidden: Tensor, packing: Packing) -> _Plan:
    own, after, last = layer.attention.self, layer.attention.output, layer.output
    dropout = own.dropout.p if layer.training else 0.0
    return _Plan(
        attention.MaskedAttention.of(packing, AttentionSettings(own.scaling, dropout=dropout, site=site_of(own))),
        own.num_attention_heads,
        masks_of(after.dropout, hidden.shape),
        masks_of(last.dropout, hidden.shape),
        (after.LayerNorm.eps, last.LayerNorm.eps),
    )


class _Layer(torch.autograd.Function):
    """hidden -> x = norm(hidden + drop(attention(hidden))) -> norm(x + drop(down(gelu(up(x)))))."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, plan: _Plan, products: Products, dtype: torch.dtype, *weights: Tensor
    ) -> Tensor:
        gain, bias, last_gain, last_bias = weights[8], weights[9], weights[14], weights[15]
        keep = any(ctx.needs_input_grad)
        narrow_TD = hidden_TD.to(dtype)
        qkv_TD = products.attention.output(narrow_TD)
        attended_THE, softmax = attention.forward(_heads(qkv_TD, plan.heads), plan.attention, keep=keep)
        projected_TD = products.output.output(attended_THE.flatten(1))
        x = _residual_norm(projected_TD, hidden_TD, gain, bias, plan.epsilon[0], plan.after_attention, keep=keep)
        up_TI = products.up.output(x.narrow)
        down_TD = products.down.output(_gelu(up_TI, reuse=not keep))
        out = _residual_norm(down_TD, x.out, last_gain, last_bias, plan.epsilon[1], plan.after_feed_forward, keep=keep)
        if keep:
            ctx.save_for_backward(
                *(narrow_TD, qkv_TD, attended_THE, softmax, x.normal, x.deviation, x.narrow, up_TI),
                *(out.normal, out.deviation, gain, last_gain),
            )
            ctx.plan, ctx.products = plan, products
        return out.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        narrow_TD, qkv_TD, attended_THE, softmax, normal, deviation, x_TD, up_TI, *rest = ctx.saved_tensors
        last_normal, last_deviation, gain, last_gain = rest
        plan, products = ctx.plan, ctx.products
        gradient_TD = gradients[0].contiguous()
        last = _norm_gradient(gradient_TD, None, last_normal, last_deviation, last_gain, plan.after_feed_forward)
        to_up_TI = products.down.input_gradient(last.to_input)
        activated_TI, to_up_bias = _gelu_gradient(up_TI, to_up_TI)
        to_x_TD = products.up.input_gradient(to_up_TI)
        first = _norm_gradient(last.to_residual, to_x_TD, normal, deviation, gain, plan.after_attention)
        to_attended_THE = products.output.input_gradient(first.to_input).view_as(attended_THE)
        to_qkv_TD = torch.empty_like(qkv_TD)
        heads, into = _heads(qkv_TD, plan.heads), _heads(to_qkv_TD, plan.heads)
        attention.backward(heads, attended_THE, softmax, to_attended_THE, plan.attention, into)
        to_hidden: Tensor | None = (
            first.to_residual.add_(products.attention.input_gradient(to_qkv_TD)) if ctx.needs_input_grad[0] else None
        )
        if not any(ctx.needs_input_grad[4:]):
            return to_hidden, None, None, None, *(None for _ in ctx.needs_input_grad[4:])
        to_own = products.attention.weight_gradient(to_qkv_TD, narrow_TD).chunk(3)
        to_own_bias = _sum_over_tokens(to_qkv_TD).chunk(3)
        to_weights = [
            *(x for pair in zip(to_own, to_own_bias, strict=True) for x in pair),
            products.output.weight_gradient(first.to_input, attended_THE.flatten(1)),
            *(first.to_input_bias, first.to_gain, first.to_bias),
            products.up.weight_gradient(to_up_TI, x_TD),
            to_up_bias,
            products.down.weight_gradient(last.to_input, activated_TI),
            *(last.to_input_bias, last.to_gain, last.to_bias),
        ]
        wanted = zip(to_weights, ctx.needs_input_grad[4:], strict=True)
        return to_hidden, None, None, None, *(x if needed else None for x, needed in wanted)


def _heads(qkv_TD: Tensor, heads: int) -> attention.Heads:
    """Views of query, key and value: ``[T, H, E]`` each."""
    query, key, value = qkv_TD.unflatten(1, (3, heads, -1)).unbind(1)
    return query, key, value


class _Normed(NamedTuple):
    """Of a normalisation: the output in float32 and as products take it, and what its gradient needs."""

    out: Tensor
    narrow: Tensor
    normal: Tensor | None
    deviation: Tensor | None


def _residual_norm(
    input_TD: Tensor,
    residual_TD: Tensor,
    gain: Tensor,
    bias: Tensor,
    epsilon: float,
    masks: RowMasks,
    *,
    keep: bool,
) -> _Normed:
    """Layer normalisation (Ba et al. 2016) of the residual and the input with dropout."""
    rows, width = input_TD.shape
    out = torch.empty(rows, width)
    narrow = torch.empty_like(input_TD) if is_narrow(input_TD) else None
    normal = torch.empty_like(input_TD) if keep else None
    deviation = torch.empty(rows) if keep else None
    _kernels().residual_norm_forward(
        *(is_narrow(input_TD), address(input_TD), address(residual_TD), address(gain), address(bias)),
        *(ctypes.c_float(epsilon), *masks.words, rows, width),
        *(address(out), address(narrow), address(normal), address(deviation), torch.get_num_threads()),
    )
    return _Normed(out, out if narrow is None else narrow, normal, deviation)


class _NormGradient(NamedTuple):
    to_residual: Tensor
    to_input: Tensor
    to_gain: Tensor
    to_bias: Tensor
    to_input_bias: Tensor


def _norm_gradient(
    gradient_TD: Tensor,
    more_TD: Tensor | None,
    normal_TD: Tensor,
    deviation_T: Tensor,
    gain: Tensor,
    masks: RowMasks,
) -> _NormGradient:
    """From the gradient of the output, which may come in two parts."""
    rows, width = gradient_TD.shape
    made = _NormGradient(torch.empty(rows, width), torch.empty_like(normal_TD), *(torch.empty(width) for _ in range(3)))
    _kernels().residual_norm_gradient(
        *(is_narrow(normal_TD), address(gradient_TD), address(more_TD), address(normal_TD), address(deviation_T)),
        *(address(gain), *masks.words, rows, width, *map(address, made), torch.get_num_threads()),
    )
    return made


def _gelu(input_TI: Tensor, *, reuse: bool) -> Tensor:
    """GELU (Hendrycks and Gimpel 2016), in the place of the input if that is not needed again."""
    out = input_TI if reuse else torch.empty_like(input_TI)
    _kernels().gelu_forward(
        is_narrow(input_TI), address(input_TI), address(out), ctypes.c_int64(out.numel()), torch.get_num_threads()
    )
    return out


def _gelu_gradient(input_TI: Tensor, gradient_TI: Tensor) -> tuple[Tensor, Tensor]:
    """The output again, and the input's gradient, summed over tokens; itself it takes the place of ``gradient_TI``."""
    rows, width = input_TI.shape
    out, to_bias = torch.empty_like(input_TI), torch.empty(width)
    _kernels().gelu_gradient(
        *(is_narrow(input_TI), address(input_TI), address(gradient_TI), address(out), rows, width),
        *(address(to_bias), torch.get_num_threads()),
    )
    return out, to_bias


def _sum_over_tokens(input_TD: Tensor) -> Tensor:
    rows, width = input_TD.shape
    total = torch.empty(width)
    _kernels().sum_rows(is_narrow(input_TD), address(input_TD), rows, width, address(total), torch.get_num_threads())
    return total


def _kernels() -> ctypes.CDLL:
    library = kernels()
    assert library is not None, "asked for before"
    return library
