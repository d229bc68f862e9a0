"""Inner products of all queries with all passages, whose gradient needs no memory beside the gradients themselves.

Shapes: B queries, P passages, D dimensions.
"""

from typing import Any

import torch
from torch import Tensor


def inner_products(queries_BD: Tensor, passages_PD: Tensor) -> Tensor:
    """``queries @ passages.T``: ``[B, P]``.

    The gradient of a leaf that has a ``grad`` already is added to it within the matrix product. Autograd would make a
    product of the leaf's size first and then add it, for each part of the score matrix.
    """
    scores: Tensor = _InnerProducts.apply(queries_BD, passages_PD)  # type: ignore[no-untyped-call]
    return scores


class _InnerProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, passages: Tensor) -> Tensor:
        ctx.save_for_backward(queries, passages)
        return queries @ passages.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        queries, passages = ctx.saved_tensors
        (scores,) = gradients
        to_queries, to_passages = ctx.needs_input_grad
        return (
            _product_for(queries, scores, passages) if to_queries else None,
            _product_for(passages, scores.T, queries) if to_passages else None,
        )


def _product_for(wanted: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """The gradient of ``wanted``, or None once it lies in its ``grad``."""
    if not (wanted.is_leaf and wanted.grad is not None):
        return left @ right
    wanted.grad.addmm_(left, right)
    return None
