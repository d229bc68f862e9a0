"""A second model that finds further passages of a batch that answer a query (Solatorio 2024, GISTEmbed).

Shapes: b queries and p passages of this rank, B queries of a block, P passages and Q queries that ranks share.
"""

from dataclasses import dataclass, replace

import torch

from biencoder.distributed import gather_texts
from biencoder.model.encoder import Encoder
from biencoder.model.representations.representation import Representation, in_order
from biencoder.objective.labels import Labels
from biencoder.training.batch import TrainingBatch

ROUNDING = 1e-6  # of a score: equal texts in different chunks must count as equal


@dataclass(frozen=True)
class Guide:
    """The second model; it is not trained.

    Attributes:
        encoder: represents texts as the guide sees them.
        margin: a passage counts as an answer when it scores at most this much below the query's own positive.
    """

    encoder: Encoder
    margin: float = 0.0

    def encode(self, batch: TrainingBatch) -> Representation:
        """This rank's b + p texts, of a batch that brings the guide's tokens."""
        if not batch.guide_chunks:
            return self.encoder.nothing()
        with torch.no_grad():
            parts: list[Representation] = [self.encoder(chunk.batch) for chunk in batch.guide_chunks]
        return in_order(parts, [chunk.index for chunk in batch.guide_chunks])

    def judge(self, batch: TrainingBatch, texts: Representation) -> "Guidance":
        """What the guide says about a batch, given its representation of this rank's texts. A collective."""
        queries = texts[: batch.queries]
        passages = gather_texts(texts[batch.queries :], batch.passage_sizes)
        return Guidance(queries, passages, gather_texts(queries, batch.query_sizes), self.margin)


@dataclass(frozen=True)
class Guidance:
    """A batch as the guide sees it.

    Attributes:
        queries: the B queries that are labelled.
        passages: the P passages.
        all_queries: the Q queries.
        margin: see :class:`Guide`.
    """

    queries: Representation
    passages: Representation
    all_queries: Representation
    margin: float

    def rows(self, part: slice) -> "Guidance":
        """The same for some of the queries."""
        return replace(self, queries=self.queries[part])

    def added_to(self, labels: Labels) -> Labels:
        """Labels of these queries that also know what the guide takes for an answer."""
        positives = self.passages[labels.groups[:, 0]]
        least = (self.queries.pair_scores(positives) - self.margin - ROUNDING)[:, None]
        passages = self.queries.scores(self.passages) >= least
        queries = least <= self.all_queries.scores(positives).T
        return replace(
            labels,
            known_positives=passages if labels.known_positives is None else labels.known_positives | passages,
            known_queries=queries if labels.known_queries is None else labels.known_queries | queries,
        )
