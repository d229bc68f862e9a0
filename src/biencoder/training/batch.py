"""One rank's share of a global batch: its texts, tokenised and packed, and its labels.

Every rank knows the whole plan of a step (sampling is a pure function of data, seed and step), so labels and masks over
the passages of all ranks need no communication. Only the embeddings do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biencoder.data.files.records import Example
from biencoder.data.plan.sampling import BatchPlan, KnownPositives, share
from biencoder.data.table import ExampleTable
from biencoder.model.packing import Chunk, chunks, cut_smaller
from biencoder.model.tokens import Tokens
from biencoder.objective.labels import BatchLabels
from biencoder.objective.marks import Marks

Tokenize = Callable[[Sequence[str]], list[Tokens]]


@dataclass(frozen=True)
class TrainingBatch:
    """What one rank trains on in one step.

    Attributes:
        chunks: this rank's texts; their ``index`` counts the queries first, then the passages.
        queries: how many of the texts are queries.
        query_sizes: the number of queries on every rank that shares its texts; only this rank's if none does.
        passage_sizes: the number of passages on the same ranks.
        total_queries: queries of the global batch, over all ranks.
        labels: of this rank's queries, over the shared passages.
        guide_chunks: this rank's texts in the tokens of a guide, when there is one.
        data_set: which the whole global batch is of.
        first_query: the number of this rank's first query among those of the global batch.
        first_passage: the number of its first passage among those of the global batch.
    """

    chunks: list[Chunk]
    queries: int
    query_sizes: list[int]
    passage_sizes: list[int]
    total_queries: int
    labels: BatchLabels
    guide_chunks: list[Chunk] = field(default_factory=list)
    data_set: int = 0
    first_query: int = 0
    first_passage: int = 0

    def numbers(self, index: Tensor) -> Tensor:
        """The places in the global batch, queries first, of texts with these places on this rank: int64 ``[N]``."""
        passages = self.total_queries + self.first_passage - self.queries
        return index + torch.where(index < self.queries, self.first_query, passages)

    @property
    def texts(self) -> int:
        """Queries and passages of this rank."""
        return sum(len(chunk.index) for chunk in self.chunks)

    @property
    def tokens(self) -> int:
        """Tokens of this rank's texts."""
        return sum(chunk.tokens for chunk in self.chunks)

    def to(self, device: torch.device) -> "TrainingBatch":
        """The same batch with its tensors on ``device``."""
        return replace(
            self,
            chunks=[chunk.to(device) for chunk in self.chunks],
            guide_chunks=[chunk.to(device) for chunk in self.guide_chunks],
            labels=self.labels.to(device),
        )

    def in_chunks_of(self, max_tokens: int) -> "TrainingBatch":
        """The same batch in chunks of fewer tokens, as if it had been cut so from the start."""
        return replace(
            self, chunks=cut_smaller(self.chunks, max_tokens), guide_chunks=cut_smaller(self.guide_chunks, max_tokens)
        )


class Prompts(NamedTuple):
    """What stands before the texts of a data set.

    Attributes:
        query: before queries of rows without a prompt of their own.
        passage: before passages.
    """

    query: str
    passage: str


@dataclass(frozen=True)
class Batcher:
    """From the plan of a step to this rank's batch.

    Attributes:
        table: the training data.
        tokenize_queries: token ids of queries, whose prompt stands before them already.
        tokenize_passages: the same of passages.
        prompts: of each data set.
        chunk_tokens: most tokens that go through the model at once.
        known_positives: masks false negatives; None leaves them in.
        tokenize_for_guide: token ids of queries and passages for a guide, its prompts included; None without a guide.
        two_way: queries are told from other queries too.
        rank: of this process.
        world: number of ranks.
        cross_device: passages of all ranks are negatives.
    """

    table: ExampleTable
    tokenize_queries: Tokenize
    tokenize_passages: Tokenize
    prompts: Sequence[Prompts]
    chunk_tokens: int
    known_positives: KnownPositives | None
    tokenize_for_guide: Callable[[Sequence[str], Sequence[str]], list[Tokens]] | None = None
    two_way: bool = False
    rank: int = 0
    world: int = 1
    cross_device: bool = True

    def __call__(self, plan: BatchPlan) -> TrainingBatch:
        """This rank's part of ``plan``."""
        mine = share(len(plan.rows), self.rank, self.world)
        examples = [self.table[int(row)] for row in plan.rows[mine]]
        first, last = (int(plan.group_starts[i]) for i in (mine.start, mine.stop))
        prompt = self.prompts[plan.data_set]
        queries = [(prompt.query if e.prompt is None else e.prompt) + e.query for e in examples]
        passages = [_passage(plan, examples[int(plan.passage_row[p]) - mine.start], p) for p in range(first, last)]
        prompted = [prompt.passage + passage for passage in passages]
        sequences = self.tokenize_queries(queries) + self.tokenize_passages(prompted)
        guided = self.tokenize_for_guide and self.tokenize_for_guide([e.query for e in examples], passages)
        query_sizes, passage_sizes = self._sizes(plan)
        return TrainingBatch(
            chunks=list(chunks(sequences, self.chunk_tokens)),
            queries=len(queries),
            query_sizes=query_sizes,
            passage_sizes=passage_sizes,
            total_queries=len(plan.rows),
            labels=self._labels(plan, mine, examples),
            guide_chunks=list(chunks(guided or [], self.chunk_tokens)),
            data_set=plan.data_set,
            first_query=mine.start,
            first_passage=first,
        )

    @property
    def _shared(self) -> bool:
        return self.cross_device and self.world > 1

    def _sizes(self, plan: BatchPlan) -> tuple[list[int], list[int]]:
        """Queries and passages of each rank that shares them."""
        ranks = range(self.world) if self._shared else [self.rank]
        parts = [share(len(plan.rows), rank, self.world) for rank in ranks]
        passages = [int(plan.group_starts[part.stop] - plan.group_starts[part.start]) for part in parts]
        return [part.stop - part.start for part in parts], passages

    def _labels(self, plan: BatchPlan, mine: slice, examples: list[Example]) -> BatchLabels:
        starts, stops = plan.group_starts[mine], plan.group_starts[mine.start + 1 : mine.stop + 1]
        sizes = stops - starts
        within = np.arange(max(sizes, default=1))
        groups = np.where(within < sizes[:, None], starts[:, None] + within, -1)
        teacher = _teacher(plan, examples, groups)
        sharing = slice(0, len(plan.rows)) if self._shared else mine
        first, last = (int(plan.group_starts[i]) for i in (sharing.start, sharing.stop))
        known_passages = known_queries = None
        if self.known_positives is not None:
            passages, queries = np.arange(first, last), sharing.stop - sharing.start
            known_passages = _marks(*self.known_positives.cells(plan, mine, passages), (len(starts), len(passages)))
            if self.two_way:
                asking, answering = self.known_positives.cells(plan, sharing, starts)
                known_queries = _marks(answering, asking, (len(starts), queries))
        return BatchLabels(
            groups=torch.from_numpy(np.where(groups >= 0, groups - first, -1)),
            query_numbers=torch.arange(mine.start, mine.stop) - sharing.start,
            known_positives=known_passages,
            teacher=None if teacher is None else torch.from_numpy(teacher),
            known_queries=known_queries,
        )


def _marks(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> Marks | None:
    return Marks.of(rows, columns, shape) if len(rows) else None


def _passage(plan: BatchPlan, example: Example, passage: int) -> str:
    texts = example.positives if plan.is_positive[passage] else example.negatives
    return texts[int(plan.passage_index[passage])]


def _teacher(plan: BatchPlan, examples: list[Example], groups: np.ndarray) -> np.ndarray | None:
    """The teacher's scores, ``[b, G]`` float32: NaN for a row without scores on both sides, None when no row has any.

    In rows that say how similar their two texts are, that figure is the score of the positive.
    """
    if any(e.similarity is not None for e in examples):
        teacher = np.full(groups.shape, np.nan, dtype=np.float32)
        teacher[:, 0] = [np.nan if e.similarity is None else e.similarity for e in examples]
        return teacher
    if all(e.positive_scores is None or e.negative_scores is None for e in examples):
        return None
    teacher = np.full(groups.shape, np.nan, dtype=np.float32)
    for query, example in enumerate(examples):
        if example.positive_scores is None or example.negative_scores is None:
            continue
        for place, passage in enumerate(groups[query]):
            if passage < 0:
                continue
            scores = example.positive_scores if plan.is_positive[passage] else example.negative_scores
            teacher[query, place] = scores[int(plan.passage_index[passage])]
    return teacher
