"""The gradient of a batch of any size in bounded memory.

After Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup":

1. Encode every chunk; keep the activations of as many as memory allows.
2. Gather all ranks' passages, compute the objective on the embeddings alone, and cache its gradient with respect to
   them.
3. Backward through each chunk from its cached gradient; those whose activations were not kept are encoded again first,
   with the same dropout masks.

A rank that finds no memory for its part of a step takes part in the collectives all the same, see
:func:`~biencoder.training.memory.out_of_memory.memory_for_all`.

With everything kept this *is* the plain step: there is one code path. The replay draws the same masks because each
chunk's random numbers start from a seed of its own, a pure function of (seed, step, rank, chunk).

Shapes: b queries and p passages on this rank, P passages on all of them, D dimensions.
"""

import sys
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from biencoder.device.allocator import give_back
from biencoder.distributed import gather, scatter_sum, sum_over_ranks
from biencoder.model.architectures.native_layer import weights_at_rest
from biencoder.model.encoder import Encoder
from biencoder.model.packing import Chunk
from biencoder.objective.similarity import AnyObjective
from biencoder.training.batch import TrainingBatch
from biencoder.training.memory.out_of_memory import memory_for_all
from biencoder.training.sources.guide import Guide, Opinion

SCORES_AT_ONCE = 2**20  # elements of the score matrix that the objective holds at a time: 4 MB in float32


@dataclass(frozen=True)
class StepLosses:
    """Means over the queries of the global batch, in nats, equal on all ranks; and of what they were computed.

    Attributes:
        total: what is minimised.
        contrastive: its contrastive part.
        distillation: its distillation part before weighting; 0 without a teacher.
        of_queries: ``[b]``, what is minimised, of each of this rank's queries.
        vectors: ``[b + p, D]``, the embeddings of this rank's queries, then passages.
    """

    total: float
    contrastive: float
    distillation: float
    of_queries: Tensor = field(compare=False, repr=False)
    vectors: Tensor = field(compare=False, repr=False)


@dataclass
class _Encoded:
    chunk: Chunk
    seed: int
    vectors: Tensor


def accumulate_gradients(
    encoder: Encoder,
    batch: TrainingBatch,
    objective: AnyObjective,
    *,
    keep_tokens: int,
    seed: tuple[int, ...],
    held_at_most: int = sys.maxsize,
    guide: Guide | None = None,
) -> StepLosses:
    """Add this rank's part of the gradient of the global batch's mean loss to the parameters' ``grad``.

    Summed over ranks it is the gradient that one process would have for the same batch.

    Args:
        encoder: turns chunks into vectors; its parameters collect the gradient.
        batch: this rank's share of the global batch.
        objective: embeddings and labels to losses.
        keep_tokens: chunks are kept with their activations up to so many tokens; the rest is replayed.
        seed: (seed, step, rank), from which dropout is drawn.
        held_at_most: bytes of this process beyond which free memory is given back between chunks of different sizes.
        guide: masks false negatives; the batch holds its tokens.

    Raises:
        OutOfMemoryError: on all ranks, when there is none left on any; part of the gradient may have been added.
    """
    give_back(held_at_most)  # or the kept chunks would lie around the holes that the last step's replays left
    with weights_at_rest():
        with memory_for_all():
            _share_embedding_gradients(encoder)
            encoded = _encode(encoder, batch, keep_tokens, seed)
            vectors = _in_order(encoded, batch, encoder)
            guide_vectors = None if guide is None else guide.vectors_of(batch)
        opinion = None if guide is None or guide_vectors is None else guide.opinion_of(batch, guide_vectors)
        gradient, losses = _cache_gradient(vectors, batch, objective, opinion)
        with memory_for_all():
            _backward_all(encoder, encoded, gradient, held_at_most)
    return losses


def _share_embedding_gradients(encoder: Encoder) -> None:
    """Let every chunk add the rows of its own tokens to one gradient of each embedding table.

    PyTorch would make and add a whole table of gradients for each chunk. On a GPU that is cheap, and deterministic.
    """
    if encoder.device.type != "cpu":
        return
    for module in encoder.backbone.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            if not module.sparse:
                module.sparse = True
                # Sums over a chunk first: thousands of additions to one row, one by one, would lose digits.
                module.weight.register_hook(Tensor.coalesce)
            if module.weight.grad is None:
                module.weight.grad = torch.zeros_like(module.weight)


def _encode(encoder: Encoder, batch: TrainingBatch, keep_tokens: int, seed: tuple[int, ...]) -> list[_Encoded]:
    encoded, kept = [], 0
    for number, chunk in enumerate(batch.chunks):
        kept += chunk.tokens
        chunk_seed = int(np.random.SeedSequence((*seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        torch.manual_seed(chunk_seed)
        with torch.set_grad_enabled(kept <= keep_tokens):
            encoded.append(_Encoded(chunk, chunk_seed, encoder.embed(chunk.batch)))
    return encoded


def _backward_all(encoder: Encoder, encoded: list[_Encoded], gradient: Tensor, held_at_most: int) -> None:
    kept = [part for part in encoded if part.vectors.requires_grad]
    replayed = [part for part in encoded if not part.vectors.requires_grad]
    for part in kept:
        _backward(part, gradient)
    give_back(held_at_most)
    for part in replayed:
        torch.manual_seed(part.seed)
        part.vectors = encoder.embed(part.chunk.batch)
        _backward(part, gradient)


def _backward(part: _Encoded, gradient: Tensor) -> None:
    part.vectors.backward(gradient[part.chunk.index.to(gradient.device)])
    part.vectors = part.vectors.detach()  # lets go of the activations


def _cache_gradient(
    vectors: Tensor, batch: TrainingBatch, objective: AnyObjective, opinion: Opinion | None
) -> tuple[Tensor, StepLosses]:
    """The loss's gradient with respect to this rank's embeddings, ``[b + p, D]``, and the losses."""
    queries = vectors[: batch.queries].clone().requires_grad_()
    candidates = _of_all_ranks(vectors[batch.queries :], batch.passage_sizes)
    everyone = _of_all_ranks(vectors[: batch.queries], batch.query_sizes) if objective.two_way else queries
    labels = batch.labels.to(vectors.device)
    sums = torch.zeros(3, device=vectors.device)
    of_queries = torch.zeros(batch.queries, device=vectors.device)
    rows = max(1, SCORES_AT_ONCE // max(1, len(candidates)))
    with memory_for_all():
        for start in range(0, batch.queries, rows):
            part = slice(start, start + rows)
            labelled = labels.rows(part) if opinion is None else opinion.rows(part).added_to(labels.rows(part))
            losses = objective(queries[part], candidates, labelled, everyone)
            (losses.total.sum() / batch.total_queries).backward()
            distilled = losses.total.new_zeros(1) if losses.distillation is None else losses.distillation
            sums += torch.stack([x.detach().sum() for x in (losses.total, losses.contrastive, distilled)])
            of_queries[part] = losses.total.detach()
    total, contrastive, distillation = (sum_over_ranks(sums) / batch.total_queries).tolist()
    to_queries, to_passages = _gradient_of(queries), _to_this_rank(candidates, batch.passage_sizes)
    if objective.two_way:
        to_queries = to_queries + _to_this_rank(everyone, batch.query_sizes)
    step_losses = StepLosses(total, contrastive, distillation, of_queries, vectors)
    return torch.cat([to_queries, to_passages]), step_losses


def _of_all_ranks(rows: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all ranks that share them, as a leaf that collects a gradient."""
    return (gather(rows, sizes) if len(sizes) > 1 else rows.clone()).requires_grad_()


def _to_this_rank(leaf: Tensor, sizes: list[int]) -> Tensor:
    """The gradient of this rank's rows of :func:`_of_all_ranks`, from the losses of all ranks."""
    return scatter_sum(_gradient_of(leaf), sizes) if len(sizes) > 1 else _gradient_of(leaf)


def _in_order(encoded: list[_Encoded], batch: TrainingBatch, encoder: Encoder) -> Tensor:
    """``[b + p, D]``: the chunks' vectors back in the order queries, then passages; no rows on an idle rank."""
    vectors = torch.empty(batch.texts, encoder.dim, device=encoder.device)
    for part in encoded:
        vectors[part.chunk.index.to(vectors.device)] = part.vectors.detach()
    return vectors


def _gradient_of(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
