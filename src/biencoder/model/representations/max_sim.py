"""MaxSim: every vector of a query finds its best match in a passage, and the score is the sum of these matches.

After Khattab and Zaharia 2020, "ColBERT", equation 3. Similarities of single vectors are held in blocks, and what a
block leaves for the backward pass is the number of each best match, so memory does not grow with batch x batch x
tokens x tokens.

Shapes: B queries, P passages, L vectors of the longest text of its side, T vectors of all queries, D dimensions. A
vector of zeros stands where a text has no vector.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

SIMILARITIES_AT_ONCE = 2**22  # of single vectors: 16 MB in float32
VECTORS_AT_ONCE = 1024  # of queries: enough for full speed
NO_VECTOR = float("-inf")


def max_sim(queries_BLD: Tensor, passages_PLD: Tensor) -> Tensor:
    """The score of each query with each passage: ``[B, P]``; gradients flow.

    Equation 3 of ColBERT: the sum over the query's vectors of the largest inner product with a vector of the passage. A
    passage without any vector scores minus infinity.
    """
    scores: Tensor = _MaxSim.apply(queries_BLD, passages_PLD)  # type: ignore[no-untyped-call]
    return scores


def max_sim_of_pairs(queries_NLD: Tensor, passages_NLD: Tensor) -> Tensor:
    """The score of each query with the passage of the same number: ``[N]``; gradients flow."""
    similarities_NLL = torch.einsum("nqd,npd->nqp", queries_NLD, passages_NLD)
    absent_NL = ~passages_NLD.any(dim=2)
    best_NL = similarities_NLL.masked_fill(absent_NL[:, None], NO_VECTOR).amax(dim=2)
    return best_NL.masked_fill(~queries_NLD.any(dim=2), 0.0).sum(dim=1)


class _MaxSim(torch.autograd.Function):
    """:func:`max_sim`; the backward pass sends each gradient along the best matches alone."""

    @staticmethod
    def forward(ctx: Any, queries_BLD: Tensor, passages_PLD: Tensor) -> Tensor:
        rows_T, owners_T = _vectors_of(queries_BLD)
        vectors_TD = queries_BLD.flatten(0, 1)[rows_T]
        scores_TP = vectors_TD.new_empty(len(rows_T), len(passages_PLD))
        places_TP = torch.empty_like(scores_TP, dtype=torch.int32)
        for columns, rows, similarities in _blocks(vectors_TD, passages_PLD):
            found = similarities.max(dim=2)
            scores_TP[rows, columns], places_TP[rows, columns] = found.values, found.indices.int()
        ctx.save_for_backward(queries_BLD, passages_PLD, rows_T, owners_T, places_TP)
        return scores_TP.new_zeros(len(queries_BLD), len(passages_PLD)).index_add_(0, owners_T, scores_TP)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BP: Tensor) -> tuple[Tensor, Tensor]:
        queries_BLD, passages_PLD, rows_T, owners_T, places_TP = ctx.saved_tensors
        vectors_TD, passage_vectors = queries_BLD.flatten(0, 1)[rows_T], passages_PLD.flatten(0, 1)
        to_vectors_TD, to_passages = torch.zeros_like(vectors_TD), torch.zeros_like(passage_vectors)
        length, dim = passages_PLD.shape[1:]
        first_P = length * torch.arange(len(passages_PLD), device=places_TP.device)
        step = max(1, SIMILARITIES_AT_ONCE // (dim * max(1, len(passages_PLD))))
        for start in range(0, len(rows_T), step):
            rows = slice(start, start + step)
            best, weights = places_TP[rows] + first_P, gradient_BP[owners_T[rows]]
            to_vectors_TD[rows] = embedding_bag(best, passage_vectors, per_sample_weights=weights, mode="sum")
            to_passages.index_add_(0, best.flatten(), (weights[:, :, None] * vectors_TD[rows, None]).flatten(0, 1))
        to_queries = torch.zeros_like(queries_BLD).flatten(0, 1).index_copy_(0, rows_T, to_vectors_TD)
        return to_queries.view_as(queries_BLD), to_passages.view_as(passages_PLD)


def best_matches(queries_BLD: Tensor, passages_PLD: Tensor) -> Tensor:
    """:func:`max_sim` without a gradient, for search: no number of a best match is kept."""
    rows_T, owners_T = _vectors_of(queries_BLD)
    scores_PB = queries_BLD.new_zeros(len(passages_PLD), len(queries_BLD))
    for columns, rows, similarities in _blocks(queries_BLD.flatten(0, 1)[rows_T], passages_PLD):
        best = similarities.amax(dim=2)
        of_block = best.new_zeros(len(queries_BLD), best.shape[1]).index_add_(0, owners_T[rows], best)
        scores_PB[columns] += of_block.T
    return scores_PB.T


def _vectors_of(queries_BLD: Tensor) -> tuple[Tensor, Tensor]:
    """Where the queries' vectors are among B x L places, and which query each belongs to: ``[T]`` and ``[T]``."""
    rows_T = queries_BLD.flatten(0, 1).any(dim=1).nonzero().flatten()
    return rows_T, rows_T // max(1, queries_BLD.shape[1])


def _blocks(vectors_TD: Tensor, passages_PLD: Tensor) -> Iterator[tuple[Tensor, slice, Tensor]]:
    """Inner products of some vectors with all vectors of some passages, ``[T, P, L]``, at most so many at a time.

    Passages of similar lengths share a block, which is as long as the longest of them.

    Yields:
        The numbers of the passages, which of the vectors, and the products; :data:`NO_VECTOR` where there is none.
    """
    present_PL = passages_PLD.any(dim=2)
    ends_P = (present_PL * torch.arange(1, present_PL.shape[1] + 1, device=present_PL.device)).amax(dim=1)
    longest_first = ends_P.argsort(descending=True, stable=True)
    step = max(1, SIMILARITIES_AT_ONCE // (VECTORS_AT_ONCE * max(1, present_PL.shape[1])))
    for columns in longest_first.split(step):
        length = max(1, int(ends_P[columns[0]]))
        block_PLD, absent_PL = passages_PLD[columns, :length], ~present_PL[columns, :length]
        rows = max(1, SIMILARITIES_AT_ONCE // absent_PL.numel())
        for start in range(0, len(vectors_TD), rows):
            part = slice(start, start + rows)
            products = (vectors_TD[part] @ block_PLD.flatten(0, 1).T).view(-1, *absent_PL.shape)
            yield columns, part, products.masked_fill_(absent_PL, NO_VECTOR)
