"""A weight for each token of a text, as bge-m3's lexical weights.

Shapes: T tokens in the row, N texts, K tokens of the text that has the most distinct ones, H hidden size.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from biencoder.model.heads.head import Head
from biencoder.model.packing import PackedBatch
from biencoder.model.representations.sparse import BUCKETS, Sparse, distinct_tokens


class SparseHead(Head):
    """A linear layer and ReLU give each token a weight; of equal tokens of a text, the largest counts.

    As in BGE-M3 (Chen et al. 2024, arXiv 2402.03216, section 3.1).

    Args:
        width: hidden size of the backbone.
        vocabulary: number of tokens.
        special: ids of tokens that stand for no word, and have no weight.
    """

    def __init__(self, width: int, vocabulary: int, special: Sequence[int]) -> None:
        super().__init__()
        self.special: Tensor
        self.linear = nn.Linear(width, 1)
        self.vocabulary = vocabulary
        self.register_buffer("special", torch.tensor(sorted(set(special)), dtype=torch.int64), persistent=False)

    def forward(self, hidden_TD: Tensor, starts: Tensor, batch: PackedBatch) -> Sparse:
        """``[T, H]`` -> weights of the distinct tokens of each text: ``[N, K]``."""
        ids_T = batch.input_ids
        weights_T = self.linear(hidden_TD.float()).squeeze(1).relu() * ~torch.isin(ids_T, self.special)
        texts_F, tokens_F, places_T = distinct_tokens(ids_T, starts, self.vocabulary)
        largest_F = weights_T.new_zeros(len(texts_F)).scatter_reduce(0, places_T, weights_T, "amax", include_self=False)
        return Sparse.of_pairs(largest_F, texts_F, tokens_F, len(batch.lengths))

    def layer_states(self) -> list[Mapping[str, Tensor]]:
        """Of its one layer."""
        return [self.state_dict()]

    @property
    def dim(self) -> int:
        """Dimensions of the short vectors that stand for sparse ones."""
        return BUCKETS
