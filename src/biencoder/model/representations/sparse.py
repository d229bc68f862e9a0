"""A weight for each token of a text that matters: lexical search with learned weights.

Shapes: N texts, B queries, P passages, G passages in the largest group, K tokens of the text that has the most of them,
U distinct tokens of the queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_length
from torch.nn.functional import pad

from biencoder.model.representations.representation import Places, Representation

BUCKETS = 512  # of the vectors that stand for sparse ones


@dataclass(frozen=True, eq=False)
class Sparse(Representation):
    """Weights of tokens; the similarity is the inner product over the vocabulary (Chen et al. 2024, section 3.1).

    A row names each token once. The whole vocabulary is never a dimension of anything: only tokens that a query has can
    add to its scores.

    Attributes:
        weights_NK: ``[N, K]`` float32, 0 or more; 0 where a text has fewer tokens.
        tokens_NK: ``[N, K]`` int64, which tokens these are.
    """

    weights_NK: Tensor
    tokens_NK: Tensor

    @classmethod
    def of_pairs(cls, weights_F: Tensor, texts_F: Tensor, tokens_F: Tensor, texts: int) -> "Sparse":
        """Rows from F pairs of a text and a token with their weights, in the order of the texts."""
        counts_N = torch.bincount(texts_F, minlength=texts)
        most = max(1, int(counts_N.max()) if texts else 0)
        first_N = counts_N.cumsum(0) - counts_N
        places_F = texts_F * most + torch.arange(len(texts_F), device=texts_F.device) - first_N[texts_F]
        weights_NK = weights_F.new_zeros(texts * most).index_copy(0, places_F, weights_F).view(texts, most)
        return cls(weights_NK, tokens_F.new_zeros(texts * most).index_copy(0, places_F, tokens_F).view(texts, most))

    def scores(self, passages: "Sparse") -> Tensor:
        """Inner products of all queries with all passages: ``[B, P]``."""
        known_U = self.tokens_NK.unique()
        if not len(known_U):
            return self.weights_NK.new_zeros(len(self), len(passages))
        scores: Tensor = self._over(known_U) @ passages._over(known_U).T
        return scores

    def pair_scores(self, passages: "Sparse") -> Tensor:
        """Inner products of the queries with the passages of the same number: ``[N]``."""
        size = 1 + int(torch.cat([self.tokens_NK.flatten(), passages.tokens_NK.flatten()]).max())
        row_N1 = size * torch.arange(len(self), device=self.device)[:, None]
        known_U, place = (row_N1 + passages.tokens_NK).flatten().unique(return_inverse=True)
        weights_U = self.weights_NK.new_zeros(len(known_U)).index_add(0, place, passages.weights_NK.flatten())
        asked_NK = row_N1 + self.tokens_NK
        found_NK = torch.searchsorted(known_U, asked_NK).clamp(max=len(known_U) - 1)
        scores: Tensor = (self.weights_NK * weights_U[found_NK] * (known_U[found_NK] == asked_NK)).sum(dim=1)
        return scores

    def group_scores(self, passages: "Sparse", groups_BG: Tensor) -> Tensor:
        """Inner products of each query with its own group: ``[B, G]``."""
        return self.scores(passages).gather(1, groups_BG)

    def cosines(self, passages: "Sparse") -> Tensor:
        """Cosines of the queries with the passages of the same number: ``[N]``."""
        lengths: Tensor = self.weights_NK.norm(dim=1) * passages.weights_NK.norm(dim=1)
        cosines: Tensor = self.pair_scores(passages) / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)
        return cosines

    def cut(self, dim: int, *, normalize: bool) -> "Sparse":
        """Not possible: the dimensions of a sparse row are words, and none comes before another."""
        raise NotImplementedError("sparse rows cannot be cut to fewer dimensions")

    @property
    def places(self) -> Places:
        """K, which is larger for a batch with longer texts."""
        return (self.weights_NK.shape[1],)

    def in_places(self, places: Places) -> "Sparse":
        """The same texts in so many places each; those behind the longest text weigh nothing."""
        missing = (0, places[0] - self.weights_NK.shape[1])
        return Sparse(pad(self.weights_NK, missing), pad(self.tokens_NK, missing))

    @property
    def vectors(self) -> Tensor:
        """Short vectors whose inner products estimate those of the rows, scaled to length 1: ``[N, BUCKETS]``.

        Tokens fall into buckets, with a sign each (Weinberger et al. 2009, "Feature Hashing", definition 1).
        """
        mixed_NK = (self.tokens_NK * 2654435761) % 2**32  # Knuth's multiplicative hash
        signs_NK = 1.0 - 2.0 * (mixed_NK >> 31).to(self.weights_NK.dtype)
        buckets_NK = (mixed_NK >> 16) % BUCKETS
        found = self.weights_NK.new_zeros(len(self), BUCKETS).scatter_add(1, buckets_NK, self.weights_NK * signs_NK)
        return unit_length(found, dim=1)

    def mean_weights(self) -> Tensor:
        """The mean over the texts of the weight of each token that any of them has, in no order: ``[U]``."""
        tokens, places = self.tokens_NK.flatten().unique(return_inverse=True)
        sums = self.weights_NK.new_zeros(len(tokens)).index_add(0, places, self.weights_NK.flatten())
        return sums / max(1, len(self))

    def _over(self, known_U: Tensor) -> Tensor:
        """The weights of the known tokens, for each text: ``[N, U]``."""
        columns_NK = torch.searchsorted(known_U, self.tokens_NK.contiguous()).clamp(max=len(known_U) - 1)
        weights_NK = self.weights_NK * (known_U[columns_NK] == self.tokens_NK)
        return weights_NK.new_zeros(len(self), len(known_U)).scatter_add(1, columns_NK, weights_NK)


def distinct_tokens(ids_T: Tensor, starts: Tensor, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """The F pairs of a text and a token that it has, in the order of the texts.

    Args:
        ids_T: ``[T]`` int64, the tokens of all texts, one text behind the other.
        starts: ``[N + 1]``, where each text begins, and T.
        vocabulary: number of tokens that there are.

    Returns:
        Texts ``[F]``, their tokens ``[F]``, and the pair to which each of the T tokens belongs ``[T]``.
    """
    texts = torch.arange(len(starts) - 1, device=starts.device)
    owners_T = texts.repeat_interleave(starts.diff(), output_size=len(ids_T))
    keys_F, places_T = (owners_T * vocabulary + ids_T).unique(return_inverse=True)
    return keys_F // vocabulary, keys_F % vocabulary, places_T
