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
        absent_PL = ~passages_PLD.any(dim=2)
        for rows, columns in _blocks(len(rows_T), *absent_PL.shape):
            found = _similarities(vectors_TD[rows], passages_PLD[columns], absent_PL[columns]).max(dim=2)
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
        for rows, columns in _blocks(len(rows_T), len(passages_PLD), dim):
            best = places_TP[rows, columns] + first_P[columns]
            weights = gradient_BP[owners_T[rows], columns]
            to_vectors_TD[rows] += embedding_bag(best, passage_vectors, per_sample_weights=weights, mode="sum")
            to_passages.index_add_(0, best.flatten(), (weights[:, :, None] * vectors_TD[rows, None]).flatten(0, 1))
        to_queries = torch.zeros_like(queries_BLD).flatten(0, 1).index_copy_(0, rows_T, to_vectors_TD)
        return to_queries.view_as(queries_BLD), to_passages.view_as(passages_PLD)


def best_matches(queries_BLD: Tensor, passages_PLD: Tensor) -> Tensor:
    """:func:`max_sim` without a gradient, for search: no number of a best match is kept."""
    rows_T, owners_T = _vectors_of(queries_BLD)
    vectors_TD = queries_BLD.flatten(0, 1)[rows_T]
    absent_PL = ~passages_PLD.any(dim=2)
    scores_BP = vectors_TD.new_zeros(len(queries_BLD), len(passages_PLD))
    for rows, columns in _blocks(len(rows_T), *absent_PL.shape):
        best = _similarities(vectors_TD[rows], passages_PLD[columns], absent_PL[columns]).amax(dim=2)
        scores_BP[:, columns].index_add_(0, owners_T[rows], best)
    return scores_BP


def _similarities(vectors_TD: Tensor, passages_PLD: Tensor, absent_PL: Tensor) -> Tensor:
    """Inner products of some vectors with all vectors of some passages: ``[T, P, L]``."""
    similarities = vectors_TD @ passages_PLD.flatten(0, 1).T
    return similarities.view(-1, *absent_PL.shape).masked_fill_(absent_PL, NO_VECTOR)


def _vectors_of(queries_BLD: Tensor) -> tuple[Tensor, Tensor]:
    """Where the queries' vectors are among B x L places, and which query each belongs to: ``[T]`` and ``[T]``."""
    rows_T = queries_BLD.flatten(0, 1).any(dim=1).nonzero().flatten()
    return rows_T, rows_T // max(1, queries_BLD.shape[1])


def _blocks(vectors: int, passages: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Cut T x P into blocks of at most :data:`SIMILARITIES_AT_ONCE` numbers, where each pair has ``length`` of them."""
    columns = max(1, min(passages, SIMILARITIES_AT_ONCE // (64 * max(1, length))))
    rows = max(1, SIMILARITIES_AT_ONCE // (columns * max(1, length)))
    for first in range(0, passages, columns):
        for start in range(0, vectors, rows):
            yield slice(start, start + rows), slice(first, first + columns)
