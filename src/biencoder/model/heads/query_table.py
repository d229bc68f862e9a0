"""Queries without a forward pass: a table holds a weight for each token, and only passages go through the model.

Shapes: T tokens in the row, N texts, V tokens of the vocabulary, K distinct tokens of the text that has most.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from biencoder.model.heads.head import Head
from biencoder.model.packing import PackedBatch
from biencoder.model.representations.sparse import Sparse, distinct_tokens


class QueryTableHead(Head):
    """A sparse head for passages, and a table for queries, whose tokens are marked.

    The weight of a token is learned, and is the same in every query that has it, as in Nardini et al. 2025, "Effective
    Inference-Free Retrieval for Learned Sparse Representations" (arXiv 2505.01452).

    Args:
        passages: makes the weights of passages.
        weights_V: of the table, float32.
        special: ids of tokens that stand for no word, and have no weight in a query.
    """

    def __init__(self, passages: Head, weights_V: Tensor, special: Sequence[int]) -> None:
        super().__init__()
        self.special: Tensor
        self.passages = passages
        self.weights_V = nn.Parameter(weights_V)
        self.register_buffer("special", torch.tensor(sorted(set(special)), dtype=torch.int64), persistent=False)

    def forward(self, hidden_TD: Tensor, starts: Tensor, batch: PackedBatch) -> Sparse:
        """What the head for passages makes of N passages."""
        made = self.passages(hidden_TD, starts, batch)
        assert isinstance(made, Sparse)
        return made

    def look_up(self, queries: PackedBatch) -> Sparse:
        """The weights of the distinct tokens of N queries, ``[N, K]``; a weight below 0 counts as 0."""
        ids_T = queries.as_read().input_ids
        texts_F, tokens_F, _ = distinct_tokens(ids_T, queries.packing.starts, len(self.weights_V))
        weights_F = self.weights_V.relu()[tokens_F] * ~torch.isin(tokens_F, self.special)
        return Sparse.of_pairs(weights_F, texts_F, tokens_F, len(queries.lengths))

    def layer_states(self) -> list[Mapping[str, Tensor]]:
        """Of the head for passages, then the table as queries see it."""
        seen_V = self.weights_V.detach().relu().index_fill(0, self.special, 0)
        return [*self.passages.layer_states(), {"weight": seen_V}]

    def whole(self, backbone: PreTrainedModel) -> PreTrainedModel:
        """As of the head for passages."""
        return self.passages.whole(backbone)

    @property
    def dim(self) -> int:
        """As of the head for passages."""
        return self.passages.dim
