"""Attention over texts of a packed row on a CPU, with dropout, its backward pass, and little to keep between the two.

PyTorch's own flash attention on a CPU has no dropout and a slow backward pass; its fallback keeps several copies of the
``[L, L]`` weights. Here a few texts at a time go through batched products whose scores stay in the processor's caches,
and the weights are computed again in the backward pass instead of being kept (Dao et al. 2022, "FlashAttention",
algorithm 4): only the masks of dropout are, at a byte each.

Shapes: T tokens in the row, H heads, E size of a head, N texts of L tokens in a block, M = N x H.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd

from biencoder.model.dropout import keep_mask

BLOCK = 2**20  # scores computed at a time: 4 MB in float32


class Block(NamedTuple):
    """``texts`` neighbours of ``length`` tokens each, from token ``start``, and the mask that they share."""

    start: int
    texts: int
    length: int
    mask_LL: Tensor | None

    @property
    def tokens(self) -> slice:
        """Where they are in the row."""
        return slice(self.start, self.start + self.texts * self.length)


def attend_on_cpu(
    query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, runs: list[Block], *, scale: float, dropout: float
) -> Tensor:
    """``scaled_dot_product_attention`` within each text, with dropout on the attention weights.

    Args:
        query_THE: ``[T, H, E]``; key and value likewise.
        key_THE: see query.
        value_THE: see query.
        runs: the texts; masks are bool, True where a token may be seen.
        scale: factor on the scores.
        dropout: probability below 1.

    Returns:
        ``[T, H, E]``, contiguous, in the precision of autocast where that is on.
    """
    if torch.is_autocast_enabled("cpu"):
        narrow = torch.get_autocast_dtype("cpu")
        query_THE, key_THE, value_THE = (x.to(narrow) for x in (query_THE, key_THE, value_THE))
    blocks = [block for run in runs for block in _cut(run, query_THE.shape[1])]
    with torch.autocast("cpu", enabled=False):
        attended: Tensor = _Attention.apply(query_THE, key_THE, value_THE, blocks, scale, dropout)  # type: ignore[no-untyped-call]
    return attended


def _cut(run: Block, heads: int) -> Iterator[Block]:
    at_once = max(1, BLOCK // (heads * run.length**2))
    for first in range(0, run.texts, at_once):
        texts = min(at_once, run.texts - first)
        yield run._replace(start=run.start + first * run.length, texts=texts)


class _Attention(torch.autograd.Function):
    """With P the softmax of the scores, K the mask of dropout and u its factor: out = u (P ∘ K) V.

    All of it in float32, also between bf16 layers: products with so short a side gain little from bf16, and the
    gradient comes closer to the exact one than that of PyTorch's flash attention.
    """

    @staticmethod
    @custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scale: float, dropout: float
    ) -> Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        out[blocks[-1].tokens.stop :] = 0
        keeps = []
        for block in blocks:
            query_MLE, key_MLE, value_MLE = (_heads_first(x, block) for x in (query, key, value))
            weights_MLL = _weights(query_MLE, key_MLE, scale, block.mask_LL)
            factor = 1.0
            if dropout:
                keep_MLL, factor = keep_mask(tuple(weights_MLL.shape), dropout)
                weights_MLL.mul_(keep_MLL)
                keeps.append(keep_MLL)
            _tokens_first(torch.bmm(weights_MLL, value_MLE).mul_(factor), out, block)
        ctx.save_for_backward(query, key, value, *keeps)
        ctx.blocks, ctx.scale, ctx.factor = blocks, scale, factor
        return out

    @staticmethod
    @custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]  # with autocast off, as in the forward pass
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *keeps = ctx.saved_tensors
        to_query, to_key, to_value = made = [torch.empty_like(gradients[0]) for _ in range(3)]
        for tensor in made:
            tensor[ctx.blocks[-1].tokens.stop :] = 0
        for number, block in enumerate(ctx.blocks):
            query_MLE, key_MLE, value_MLE, gradient_MLE = (
                _heads_first(x, block) for x in (query, key, value, gradients[0])
            )
            gradient_MLE.mul_(ctx.factor)
            weights_MLL = _weights(query_MLE, key_MLE, ctx.scale, block.mask_LL)
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
    """Turn the gradient of a softmax over the last dimension into that of its input, in place."""
    torch.ops.aten._softmax_backward_data.out(gradient, softmax, -1, softmax.dtype, grad_input=gradient)


def _heads_first(row_THE: Tensor, block: Block) -> Tensor:
    """A copy of a block's texts as ``[M, L, E]``, in float32 at least."""
    texts_NHLE = row_THE[block.tokens].unflatten(0, (block.texts, block.length)).transpose(1, 2)
    wide = torch.promote_types(row_THE.dtype, torch.float32)
    copied: Tensor = texts_NHLE.to(wide, memory_format=torch.contiguous_format, copy=True).flatten(0, 1)
    return copied


def _tokens_first(block_MLE: Tensor, row_THE: Tensor, block: Block) -> None:
    """Write ``[M, L, E]`` to where the texts are in the row."""
    texts_NHLE = row_THE[block.tokens].unflatten(0, (block.texts, block.length)).transpose(1, 2)
    texts_NHLE.copy_(block_MLE.unflatten(0, (block.texts, -1)))
