"""A second model that tells which passages of a batch answer a query besides its own (Solatorio 2024, GISTEmbed).

Shapes: B queries of this rank, P passages and Q queries that it shares with the others, D dimensions of the guide.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from biencoder.distributed import gather
from biencoder.model.encoder import Encoder
from biencoder.objective.objective import Labels, similarity
from biencoder.training.batch import TrainingBatch

ROUNDING = 1e-6  # of a score: equal texts in different chunks must count as equal


@dataclass(frozen=True)
class Guide:
    """The model that is asked; it is not trained.

    Attributes:
        encoder: turns texts into the guide's vectors.
        margin: a passage counts as an answer from this much below the score of the query's own positive.
    """

    encoder: Encoder
    margin: float = 0.0

    def vectors_of(self, batch: TrainingBatch) -> Tensor:
        """``[b + p, D]`` of this rank's texts, of a batch that brings the guide's tokens."""
        vectors = torch.empty(batch.texts, self.encoder.dim, device=self.encoder.device)
        with torch.no_grad():
            for chunk in batch.guide_chunks:
                vectors[chunk.index.to(vectors.device)] = self.encoder.embed(chunk.batch)
        return vectors

    def opinion_of(self, batch: TrainingBatch, vectors: Tensor) -> "Opinion":
        """What the guide holds of a batch, by its vectors of all ranks that share their texts."""
        own, passages = vectors[: batch.queries], vectors[batch.queries :]
        if len(batch.passage_sizes) == 1:
            return Opinion(own, passages, own, self.margin)
        everyone = gather(own, batch.query_sizes)
        return Opinion(own, gather(passages, batch.passage_sizes), everyone, self.margin)


@dataclass(frozen=True)
class Opinion:
    """The guide's vectors of one batch.

    Attributes:
        queries: ``[B, D]``.
        passages: ``[P, D]``.
        everyone: ``[Q, D]``.
        margin: see :class:`Guide`.
    """

    queries: Tensor
    passages: Tensor
    everyone: Tensor
    margin: float

    def rows(self, part: slice) -> "Opinion":
        """That of some of the queries."""
        return replace(self, queries=self.queries[part])

    def added_to(self, labels: Labels) -> Labels:
        """Labels of these queries that also know what the guide takes for an answer."""
        positives = self.passages[labels.groups[:, 0]]
        least = ((self.queries * positives).sum(dim=1) - self.margin - ROUNDING)[:, None]
        answers = similarity(self.queries, self.passages) >= least
        answered = similarity(positives, self.everyone) >= least
        return replace(
            labels,
            known_positive=answers if labels.known_positive is None else labels.known_positive | answers,
            answered=answered if labels.answered is None else labels.answered | answered,
        )
