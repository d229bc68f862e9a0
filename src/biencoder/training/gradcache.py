"""The gradient of a batch of any size in bounded memory.

After Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup":

1. Encode every chunk; keep the activations of as many as memory allows.
2. Gather all ranks' passages, compute the objective on the representations alone, and cache its gradient with respect
   to them.
3. Backward through each chunk from its cached gradient; those whose activations were not kept are encoded again first,
   with the same dropout masks.

A rank that finds no memory for its part of a step still takes part in the collectives, see
:func:`~biencoder.training.memory.out_of_memory.memory_for_all`. With sharded weights, passes through the model are
collectives themselves. All ranks take equally many of them, and a rank that lacks the memory for one ends the run.

When everything is kept, this *is* the plain step: there is one code path. The masks of dropout are a function of (seed,
step, text in the global batch), so neither replays nor the cut into chunks nor the number of ranks change them
(:mod:`~biencoder.model.masks`). Where a GPU's own generator makes the masks, each chunk has a seed.

Shapes: b queries and p passages on this rank, P passages on all of them.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn

from biencoder.data.random_bits import bits_of
from biencoder.device.allocator import give_back
from biencoder.device.choice import facts
from biencoder.distributed import gather_texts, scatter_sum, sum_over_ranks
from biencoder.model.architectures.narrowing import NarrowWeights, narrow_weights
from biencoder.model.architectures.native_layer import prepared_weights
from biencoder.model.encoder import Encoder
from biencoder.model.masks import TextKeys
from biencoder.model.packing import Chunk
from biencoder.model.parallel.sharded import is_sharded
from biencoder.model.representations.representation import Representation, concatenate, in_order
from biencoder.objective.labels import Labels
from biencoder.objective.objective import Objective
from biencoder.objective.sparsity import Sparsity
from biencoder.training.batch import TrainingBatch
from biencoder.training.guide import Guidance, Guide
from biencoder.training.memory.out_of_memory import memory_for_all
from biencoder.training.memory.sharding import alike_on_all_ranks

SCORES_AT_ONCE = 2**20  # elements of the score matrix that the objective holds at a time: 4 MB in float32
LEAST_QUERIES = 256  # of a part of the score matrix: each part passes through the gradients of all passages
MASKS = 3  # the stream of random bits of a step, beside those that choose its rows


@dataclass(frozen=True, eq=False)
class StepLosses:
    """Means over the queries of the global batch, in nats, equal on all ranks; and what they were computed from.

    All of it is still on the device: reading a number waits until the device has computed it.

    Attributes:
        total: scalar, what is minimised.
        contrastive: scalar, its contrastive part.
        distillation: scalar, its distillation part before weighting; 0 without a teacher.
        sparsity: scalar, its regulariser of weights for tokens before weighting; 0 without one.
        of_queries: ``[b]``, the minimised loss of each of this rank's queries.
        texts: representations of this rank's b queries, then of its p passages.
    """

    total: Tensor
    contrastive: Tensor
    distillation: Tensor
    sparsity: Tensor
    of_queries: Tensor
    texts: Representation


@dataclass
class EncodedChunk:
    """A chunk, the seed of the device's own generator, and its texts; they have a graph where activations were kept."""

    chunk: Chunk
    seed: int
    texts: Representation


def unscaled(gradient: Tensor) -> Tensor:
    """The gradient as it is."""
    return gradient


def accumulate_gradients(
    encoder: Encoder,
    batch: TrainingBatch,
    objective: Objective,
    *,
    keep_tokens: int,
    seed: tuple[int, int],
    held_at_most: int = sys.maxsize,
    guide: Guide | None = None,
    sparsity: Sparsity | None = None,
    scaled: Callable[[Tensor], Tensor] = unscaled,
) -> StepLosses:
    """Add this rank's part of the gradient of the global batch's mean loss to the parameters' ``grad``.

    Summed over ranks it is the gradient that one process would have for the same batch, dropout included. Only on a GPU
    in half precision, the masks of dropout depend on how the batch is shared and cut.

    Args:
        encoder: turns chunks into vectors; its parameters collect the gradient.
        batch: this rank's share of the global batch.
        objective: representations and labels to losses.
        keep_tokens: chunks of up to this many tokens in all keep their activations; the others are replayed.
        seed: (seed, step), from which dropout is drawn.
        held_at_most: bytes that this process may hold; beyond them, free memory is given back between chunks.
        guide: masks false negatives; the batch holds its tokens.
        sparsity: is added to the loss of each query, with its weight of this step.
        scaled: multiplies the gradient before it goes through the model (Micikevicius et al. 2018, section 3.2), so
            that float16 holds it; the parameters' gradient is as many times as large.

    Raises:
        OutOfMemoryError: memory ran out on some rank; raised on all of them. Part of the gradient may have been added.
    """
    passes = contextlib.nullcontext if is_sharded(encoder.backbone) else memory_for_all
    give_back(held_at_most)  # or the kept chunks would lie around the holes that the last step's replays left
    with prepared_weights(), narrow_weights(encoder.backbone, encoder.precision) as narrow:
        with passes():
            _share_embedding_gradients(encoder)
            encoded = encode_chunks(encoder, batch, keep_tokens, seed)
            texts = _in_order(encoded, encoder)
            guide_texts = None if guide is None else guide.encode(batch)
        guidance = None if guide is None or guide_texts is None else guide.judge(batch, guide_texts)
        gradient, losses = _cache_gradient(texts, batch, objective, guidance, sparsity)
        with passes():
            _backward_all(encoder, narrow, encoded, gradient.map(scaled), held_at_most)
    return losses


def _share_embedding_gradients(encoder: Encoder) -> None:
    """Let every chunk add the rows of its own tokens to one gradient of each embedding table.

    PyTorch would make and add a whole table of gradients for each chunk, which is cheap on a GPU only. A
    sharded table hands on its gradient after each chunk, so there is none to share.
    """
    if not facts(encoder.device).sums_embedding_gradients or is_sharded(encoder.backbone):
        return
    for module in encoder.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            if not module.sparse:
                module.sparse = True
                # Sums over a chunk first: thousands of additions to one row, one by one, would lose digits.
                module.weight.register_hook(_summed)
            if module.weight.grad is None:
                module.weight.grad = torch.zeros_like(module.weight)


def _summed(gradient: Tensor) -> Tensor:
    """The gradient with one row for each token; it is dense already if a head uses the table too."""
    return gradient.coalesce() if gradient.is_sparse else gradient


def encode_chunks(
    encoder: Encoder, batch: TrainingBatch, keep_tokens: int, seed: tuple[int, int]
) -> list[EncodedChunk]:
    """Step 1 of the paper; a chunk whose activations are not kept is encoded without a graph."""
    kept = sum(tokens <= keep_tokens for tokens in accumulate(chunk.tokens for chunk in batch.chunks))
    chunks, kept = alike_on_all_ranks(encoder, batch.chunks, kept)
    step_key = _bits(*seed, MASKS)
    encoded = []
    for number, chunk in enumerate(chunks):
        numbers = batch.numbers(chunk.index) if len(chunk.index) else chunk.index.new_zeros(1)
        keyed = chunk.keyed(TextKeys.of(step_key, numbers))
        chunk_seed = _bits(*seed, MASKS, batch.first_query, number)
        with torch.set_grad_enabled(number < kept):
            encoded.append(EncodedChunk(keyed, chunk_seed, _encode(encoder, keyed, chunk_seed)))
    return encoded


def _bits(seed: int, *words: int) -> int:
    return int(bits_of(seed, *words)[0])


def _encode(encoder: Encoder, chunk: Chunk, seed: int) -> Representation:
    """The chunk's texts; a chunk without any holds a token, so that the pass takes place."""
    torch.manual_seed(seed)
    texts: Representation = encoder(chunk.batch)
    return texts if len(chunk.index) else texts[:0]


def _in_order(encoded: list[EncodedChunk], encoder: Encoder) -> Representation:
    """The chunks' texts in the order queries, then passages, without a graph; no text on an idle rank."""
    if not encoded:
        return encoder.nothing()
    return in_order([part.texts.map(Tensor.detach) for part in encoded], [part.chunk.index for part in encoded])


def _cache_gradient(
    texts: Representation,
    batch: TrainingBatch,
    objective: Objective,
    guidance: Guidance | None,
    sparsity: Sparsity | None,
) -> tuple[Representation, StepLosses]:
    """Step 2: the loss's gradient with respect to this rank's b + p texts, and the losses."""
    passages = Shared.of(gather_texts(texts[batch.queries :], batch.passage_sizes), objective)
    all_queries = None
    if objective.two_way or sparsity is not None:
        all_queries = Shared.of(gather_texts(texts[: batch.queries], batch.query_sizes), objective)
    labels = batch.labels.to(texts.device)
    sums = torch.zeros(4, device=texts.device)
    of_queries = torch.zeros(batch.queries, device=texts.device)
    rows = max(LEAST_QUERIES, SCORES_AT_ONCE // max(1, len(passages.texts)))
    to_queries = [texts[:0]]
    with memory_for_all():
        for start in range(0, batch.queries, rows):
            part = slice(start, min(start + rows, batch.queries))
            queries = texts[part].as_leaves()
            known = labels.rows(part) if guidance is None else guidance.rows(part).added_to(labels.rows(part))
            found = _add_gradients(objective, queries, passages, all_queries, known, batch.total_queries)
            to_queries.append(queries.gradient())
            sums[:3] += found.sum(dim=1)
            of_queries[part] = found[0]
        if sparsity is not None and all_queries is not None:  # once, because it is the same for each query
            norm = sparsity(all_queries.texts, passages.texts)
            (sparsity.weight * norm * (batch.queries / batch.total_queries)).backward()
            added = sparsity.weight * norm.detach()
            of_queries += added
            sums[0] += batch.queries * added
            sums[3] += batch.queries * norm.detach()
    total, contrastive, distillation, norm = (sum_over_ranks(sums) / batch.total_queries).unbind()
    gradient = concatenate(to_queries)
    del to_queries
    if all_queries is not None:
        gradient = gradient.plus(_to_this_rank(all_queries.gradient(), batch.query_sizes))
    gradient = concatenate([gradient, _to_this_rank(passages.gradient(), batch.passage_sizes)])
    return gradient, StepLosses(total, contrastive, distillation, norm, of_queries, texts)


def _add_gradients(
    objective: Objective,
    queries: Representation,
    passages: "Shared",
    all_queries: "Shared | None",
    labels: Labels,
    total_queries: int,
) -> Tensor:
    """Add the gradient of a block of B queries, one cut after another, so that one matrix of scores is held at a time.

    Returns:
        ``[3, B]``: the minimised loss of each query, its contrastive part and its distillation part.
    """
    cuts = objective.cuts(queries)
    found = torch.zeros(3, len(queries), device=queries.device)
    for number, cut in enumerate(cuts):
        everything = None if all_queries is None else all_queries.cuts[number]
        losses = objective.of_cut(cut, passages.cuts[number], labels, everything)
        (losses.total.sum() / (len(cuts) * total_queries)).backward()
        distilled = torch.zeros_like(losses.total) if losses.distillation is None else losses.distillation
        found += torch.stack([losses.total, losses.contrastive, distilled]).detach() / len(cuts)
    return found


@dataclass(frozen=True)
class Shared:
    """Texts that all blocks of queries are compared with. They are cut once, and so are their gradients.

    Attributes:
        texts: leaves.
        whole: what the objective makes of them, in their graph.
        cuts: the same as leaves.
    """

    texts: Representation
    whole: list[Representation]
    cuts: list[Representation]

    @staticmethod
    def of(texts: Representation, objective: Objective) -> "Shared":
        """The texts as the objective compares them."""
        leaves = texts.as_leaves()
        whole = objective.cuts(leaves)
        return Shared(leaves, whole, [cut if cut.is_leaf else cut.as_leaves() for cut in whole])

    def gradient(self) -> Representation:
        """What all blocks have added up; each cut is given up when it has added its own."""
        while self.cuts:
            whole, cut = self.whole.pop(0), self.cuts.pop(0)
            if whole is not cut:
                whole.backward(cut.gradient())
        return self.texts.gradient()


def _to_this_rank(gradient: Representation, sizes: list[int]) -> Representation:
    """The gradient of this rank's texts among those of all ranks that share them, from the losses of all ranks."""
    return gradient.map(partial(scatter_sum, sizes=sizes)) if len(sizes) > 1 else gradient


def _backward_all(
    encoder: Encoder,
    narrow: NarrowWeights,
    encoded: list[EncodedChunk],
    gradient: Representation,
    held_at_most: int,
) -> None:
    """Step 3: the chunks that were kept first, then the others, which are encoded again."""
    with_graph = [part for part in encoded if part.texts.requires_grad]
    replayed = [part for part in encoded if not part.texts.requires_grad]
    for part in with_graph:
        _backward(part, gradient)
        narrow.hand_over()
    give_back(held_at_most)
    for part in replayed:
        part.texts = _encode(encoder, part.chunk, part.seed)
        _backward(part, gradient)
        narrow.hand_over()


def _backward(part: EncodedChunk, gradient: Representation) -> None:
    part.texts.backward(gradient[part.chunk.index])
    part.texts = part.texts.map(Tensor.detach)  # lets go of the activations
