"""How many tokens' activations fit into the memory that one step may take."""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from biencoder.device.allocator import held_bytes
from biencoder.device.choice import facts
from biencoder.device.cpu import FEWEST_ROWS
from biencoder.distributed import world_size
from biencoder.model.architectures.native_layer import prepared_bytes, prepared_weights
from biencoder.model.encoder import Encoder
from biencoder.model.packing import PackedBatch, pack
from biencoder.model.parallel.sharded import is_sharded
from biencoder.terminal import say
from biencoder.training.memory.state import state_of

HEADROOM = 2.0  # memory of a step over what autograd keeps: a chunk's temporary tensors, holes in the heap
CHUNK_SHARE = 1 / 9  # share of what a budget leaves beside weights, gradients and moments


def activations_within(encoder: Encoder, budget: int, state: int) -> int:
    """Bytes that activations may take so that the whole process stays within ``budget``; below 0 if it cannot.

    What the process holds now comes first, then ``state``: gradients, two moments, and the weights laid out for
    products.
    """
    return int((budget - facts(encoder.device).held() - state) / HEADROOM)


def held_at_most(state: int, activations: int) -> int:
    """Bytes that this process may hold in training: what it holds now, ``state`` as above, and what a step takes."""
    return held_bytes() + state + int(HEADROOM * activations)


def token_budget(encoder: Encoder, memory_budget: int | None, max_length: int) -> tuple[int, int, int]:
    """Tokens to send through the model at once, tokens to keep activations of, and bytes to hold at most.

    Chunks decide in which order sums are rounded. So on a CPU, and with a budget on any device, their size does not
    depend on what changes from run to run, such as what the process holds at the moment. How many chunks are kept
    changes no result.

    Args:
        encoder: in training mode, so that dropout's masks count.
        memory_budget: bytes for the whole process; None for the device's default beside everything else.
        max_length: tokens of the longest text; its tokens cost most.

    Returns:
        ``(chunk_tokens, keep_tokens, held_at_most)``, the last two for
        :func:`~biencoder.training.gradcache.accumulate_gradients`. Several chunks fit, so
        that the part of a batch that is left over is small.
    """
    device, held = facts(encoder.device), state_of(encoder, world_size() if is_sharded(encoder.backbone) else 1)
    learning = held.total - held.weights
    with prepared_weights():
        bytes_per_token = activation_bytes_per_token(encoder, max_length)
        state = learning + prepared_bytes()
    if memory_budget is None:
        activations = device.default_activations(bytes_per_token, state)
        chunk = activations // 2 // bytes_per_token
    else:
        activations = activations_within(encoder, memory_budget, state)
        beside = memory_budget - held.total
        chunk = int(CHUNK_SHARE * beside) // bytes_per_token
    chunk = max(max_length, min(device.largest_chunk, chunk))
    least = chunk * bytes_per_token
    if memory_budget is not None and activations < least:
        needed = memory_budget + HEADROOM * (least - activations)
        say(f"the memory budget is too small: this model takes {needed / 1e9:.1f} GB, with {chunk:,} tokens at once")
    activations = max(activations, least)
    return chunk, activations // bytes_per_token, held_at_most(state, activations)


def activation_bytes_per_token(encoder: Encoder, max_length: int) -> int:
    """Bytes that autograd keeps for each token of texts of ``max_length`` tokens, measured on this model.

    It measures a few texts and twice as many, so that what does not grow with them (weights cast to bf16) drops out.
    """
    device = facts(encoder.device)
    few = max(2, -(-FEWEST_ROWS // max_length))
    some, twice = (_saved_bytes(encoder, pack([[0] * max_length] * texts)) for texts in (few, 2 * few))
    rows, twice_rows = (device.rows_of_products(texts * max_length) for texts in (few, 2 * few))
    return max(1, (twice - some) // (twice_rows - rows))


def _saved_bytes(encoder: Encoder, batch: PackedBatch) -> int:
    storages: dict[int, torch.UntypedStorage] = {}
    saved: list[Tensor] = []  # alive, so that no storage is counted twice

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        saved.append(tensor.detach())  # a graph that held its own outputs would hold itself
        return saved[-1]

    with saved_tensors_hooks(count, lambda tensor: tensor):
        encoder.embed(batch)
    kept = sum(storage.nbytes() for storage in storages.values())  # gathered weights are gone: nobody keeps them
    saved.clear()  # PyTorch goes on holding `count`
    storages.clear()
    return kept
