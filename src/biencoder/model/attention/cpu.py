"""Attention over texts of a packed row on a CPU, with dropout, its backward pass, and little to keep between the two.

PyTorch's own flash attention on a CPU has no dropout and a slow backward pass; its fallback keeps several copies of the
``[L, L]`` weights. Here a few texts at a time go through batched products whose scores stay in the processor's caches,
and the backward pass computes the weights again (Dao et al. 2022, "FlashAttention", algorithm 4). Only the masks of
dropout are kept, at a byte each, because it takes longer to make them than to read them.

Shapes: T tokens in the row, H heads, E size of a head, N texts of L tokens in a block, M = N x H.
"""

from typing import Any

import torch
from torch import Tensor
from torch.amp.autocast_mode import custom_bwd, custom_fwd

from biencoder.config.choices import CPU
from biencoder.model.attention.settings import AttentionSettings, ungrouped
from biencoder.model.masks import NO_WEIGHT_MASKS, WeightMasks
from biencoder.model.packing import Block, Packing

SCORES_AT_ONCE = 2**20  # 4 MB in float32


Part = tuple[Block, Tensor | None]  # some texts, and the mask that they share: bool, True where a token is seen


def runs(query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, settings: AttentionSettings) -> bool:  # noqa: ARG001
    """On a CPU, with dropout or for a backward pass; without both, PyTorch's own attention is as fast."""
    is_plain = query_THE.device.type == CPU and settings.bias_HLL is None
    return is_plain and bool(settings.dropout or torch.is_grad_enabled())


def attend(
    query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, packing: Packing, settings: AttentionSettings
) -> Tensor:
    """See :func:`~biencoder.model.attention.providers.attend`; in the precision of autocast where that is on."""
    rows = ungrouped(query_THE, key_TKE, value_TKE)
    if torch.is_autocast_enabled("cpu"):
        narrow = torch.get_autocast_dtype("cpu")
        query_THE, key_THE, value_THE = (x.to(narrow) for x in rows)
    else:
        query_THE, key_THE, value_THE = rows
    parts: list[Part] = []
    for block in packing.blocks:
        mask_LL = settings.seen(block.length, query_THE.device)
        at_once = max(1, SCORES_AT_ONCE // (query_THE.shape[1] * block.length**2))
        parts += [(part, mask_LL) for part in block.cut(at_once)]
    with torch.autocast("cpu", enabled=False):
        attended: Tensor = _CpuAttention.apply(  # type: ignore[no-untyped-call]
            query_THE, key_THE, value_THE, parts, settings.scale, settings.masks(packing) or NO_WEIGHT_MASKS
        )
    return attended


class _CpuAttention(torch.autograd.Function):
    """With P the softmax of the scores, K the mask of dropout and u its factor: out = u (P ∘ K) V.

    All of it is float32, also between bf16 layers. Products with so short a side gain little from bf16, and the
    gradient comes closer to the exact one than PyTorch's flash attention does.
    """

    @staticmethod
    @custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: list[Part], scale: float, masks: WeightMasks
    ) -> Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        out[parts[-1][0].tokens.stop :] = 0
        keeps = []
        for block, mask_LL in parts:
            query_MLE, key_MLE, value_MLE = (_heads_first(x, block) for x in (query, key, value))
            weights_MLL = _weights(query_MLE, key_MLE, scale, mask_LL)
            if masks.dropped:
                keep_MLL = masks.only(block.numbers).keep(query.shape[1], block.length).flatten(0, 1)
                weights_MLL.mul_(keep_MLL)
                keeps.append(keep_MLL)
            _tokens_first(torch.bmm(weights_MLL, value_MLE).mul_(masks.factor), out, block)
        ctx.save_for_backward(query, key, value, *keeps)
        ctx.parts, ctx.scale, ctx.factor = parts, scale, masks.factor
        return out

    @staticmethod
    @custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]  # with autocast off, as in the forward pass
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *keeps = ctx.saved_tensors
        to_query, to_key, to_value = made = [torch.empty_like(gradients[0]) for _ in range(3)]
        for tensor in made:
            tensor[ctx.parts[-1][0].tokens.stop :] = 0
        for number, (block, mask_LL) in enumerate(ctx.parts):
            query_MLE, key_MLE, value_MLE, gradient_MLE = (
                _heads_first(x, block) for x in (query, key, value, gradients[0])
            )
            gradient_MLE.mul_(ctx.factor)
            weights_MLL = _weights(query_MLE, key_MLE, ctx.scale, mask_LL)
            to_scores_MLL = torch.bmm(gradient_MLE, value_MLE.transpose(1, 2))
            kept_MLL = weights_MLL
            if keeps:
                to_scores_MLL.mul_(keeps[number])
                kept_MLL = weights_MLL * keeps[number]
            _softmax_backward(to_scores_MLL, weights_MLL)
            _tokens_first(torch.bmm(to_scores_MLL, key_MLE).mul_(ctx.scale), to_query, block)
            _tokens_first(torch.bmm(to_scores_MLL.transpose(1, 2), query_MLE).mul_(ctx.scale), to_key, block)
            _tokens_first(torch.bmm(kept_MLL.transpose(1, 2), gradient_MLE), to_value, block)
        return to_query, to_key, to_value, None, None, None


def _weights(query_MLE: Tensor, key_MLE: Tensor, scale: float, mask_LL: Tensor | None) -> Tensor:
    """``[M, L, L]`` softmax of the scores."""
    scores_MLL = torch.bmm(query_MLE * scale, key_MLE.transpose(1, 2))
    if mask_LL is not None:
        scores_MLL.masked_fill_(~mask_LL, float("-inf"))
    torch.softmax(scores_MLL, dim=-1, out=scores_MLL)  # a row is read before it is written
    return scores_MLL


def _softmax_backward(gradient: Tensor, softmax: Tensor) -> None:
    """Turn the gradient of a softmax over the last dimension into the gradient of its input, in place."""
    torch.ops.aten._softmax_backward_data.out(gradient, softmax, -1, softmax.dtype, grad_input=gradient)


def _heads_first(row_THE: Tensor, block: Block) -> Tensor:
    """A copy of a block's texts as ``[M, L, E]``, in float32 at least."""
    wide = torch.promote_types(row_THE.dtype, torch.float32)
    texts_NHLE = block.heads_first(row_THE)
    copied: Tensor = texts_NHLE.to(wide, memory_format=torch.contiguous_format, copy=True).flatten(0, 1)
    return copied


def _tokens_first(block_MLE: Tensor, row_THE: Tensor, block: Block) -> None:
    """Write ``[M, L, E]`` to where the texts are in the row."""
    block.heads_first(row_THE).copy_(block_MLE.unflatten(0, (block.texts, -1)))
