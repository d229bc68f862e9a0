"""The only file that knows ranks: it starts the process group, gathers embeddings and sums gradients.

A global batch has one loss: the mean over all its B queries, however many ranks W share the work. Two ways lead
to its gradient. Both give the exact gradient of this mean, never W times or 1/W of it:

- The trainer gives each rank the sum of *its* queries' losses over B, and *sums* parameter gradients over ranks.
- Under ``DistributedDataParallel``, which *averages*, each rank computes the whole mean on gathered embeddings.

In both, the gradient that reaches a gathered embedding is the sum over the losses of all ranks.

Shapes: n rows on this rank, N rows on all ranks in rank order, D dimensions.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial, wraps
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from biencoder.data.table_parts import Parts
from biencoder.device.choice import KNOWN, kind_of, kind_with
from biencoder.errors import TrainingError, UserError
from biencoder.model.parallel.sharded import gathered, is_cut, is_sharded
from biencoder.model.parallel.sharing import Ranks, ranks, shared_among
from biencoder.model.representations.representation import Kind

# Rank 0 may write for long while the others wait; a rank that dies breaks the connection at once, however long this is.
TIMEOUT = timedelta(hours=12)
Read = TypeVar("Read")
BUCKET = 2**24  # bytes of gradients that are summed at once


def is_distributed() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """This process's number among them; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


class _Everyone(Ranks):
    """All ranks of the process group."""

    def __init__(self) -> None:
        self.number, self.mine = world_size(), rank()

    def gather(self, value: Any) -> list[Any]:
        return gather_objects(value)

    def broadcast(self, value: Any) -> Any:
        return broadcast_object(value)


class _InStep(_Everyone):
    """All ranks, each of which does all the work: a pass through weights that are cut over ranks takes all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.mine = 1, 0

    @property
    def is_first(self) -> bool:
        return rank() == 0

    def gather(self, value: Any) -> list[Any]:
        return [value]


def in_step(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside of this block, ranks share no work if the weights of ``model`` are cut over them."""
    return shared_among(_InStep()) if is_sharded(model) else contextlib.nullcontext()


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the group that ``torchrun`` announces in the environment, if any, and leave it at the end.

    Inside of this block, ranks share the work that :mod:`biencoder.model.parallel.sharing` knows, also those of a group
    that there was before: all of them make the same calls.
    """
    with contextlib.ExitStack() as stack:
        if not is_distributed() and "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            taken = KNOWN[kind_of(device)]
            taken.take(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group(taken.collectives, timeout=TIMEOUT)
            stack.callback(dist.destroy_process_group)
        if is_distributed():
            stack.enter_context(shared_among(_Everyone()))
        yield


class OnDevice(Protocol):
    """A configuration that says on which device a command computes."""

    @property
    def device(self) -> str:
        """``auto``, ``cpu``, ``cuda``."""


Options = TypeVar("Options", bound=OnDevice)


def shares_work(run: Callable[[Options], None]) -> Callable[[Options], None]:
    """Let a command run on all ranks that ``torchrun`` starts; of their errors, one is printed."""

    @wraps(run)
    def on_each_rank(config: Options) -> None:
        with process_group(config.device):
            try:
                run(config)
            except Exception as error:
                let_one_speak(error, "Type the same command again; encode and score go on where they were")
                raise

    return on_each_rank


def let_one_speak(error: Exception, lost: str) -> None:
    """Return on the rank that is to say what went wrong.

    Args:
        error: what ends this rank.
        lost: what to do if another rank was killed; a sentence without its full stop.

    Raises:
        SystemExit: another rank has said why.
        TrainingError: another rank was killed.
    """
    if not first_to_fail():
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None
    if lost_a_rank(error):
        raise TrainingError(
            "another process of this run was killed, perhaps because memory ran out, or its node cannot be reached. "
            f"{lost}"
        ) from error


def first_to_fail() -> bool:
    """Whether this rank is the first that failed, so that one error is printed and not one for each rank.

    The other ranks fail as well, in the collective where they wait for the rank that is gone. Their errors tell nothing
    new.
    """
    if not is_distributed():
        return True
    store = dist.distributed_c10d._get_default_store()  # the rendezvous, which outlives any one rank
    mine = str(rank())
    try:
        return bool(store.compare_set("biencoder/failed", "", mine).decode() == mine)
    except dist.DistError:  # the node of the rendezvous is gone, and nobody can say who was first
        return True


def lost_a_rank(error: Exception) -> bool:
    """Whether ``error`` comes from a collective that another rank has left."""
    return is_distributed() and (isinstance(error, dist.DistError) or "gloo" in str(error))


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait for all ranks."""
    if is_distributed():
        dist.barrier()


def read_once_a_host(read: Callable[[Parts], Read], parts: Parts) -> Read:
    """What all ranks read of much data: one rank of each host does, and then the others find what it stored.

    Args:
        read: reads a table, or finds its parts; no collective.
        parts: where they are. They are gone afterwards.
    """
    is_first, is_shared = _local_rank() == 0, parts.folder is not None and ranks() > 1
    if is_shared and not is_first:
        barrier()
    found = read(parts)
    if is_shared:
        if is_first:
            barrier()
        barrier()
    parts.forget()
    return found


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", rank()))


@contextlib.contextmanager
def in_turns() -> Iterator[None]:
    """The ranks of a host go through this block one after another. It must hold no collective."""
    turn = _local_rank()
    turns = max_over_ranks(turn) + 1
    for _ in range(turn):
        barrier()
    yield
    for _ in range(turn, turns):
        barrier()


def gather(rows: Tensor, sizes: list[int]) -> Tensor:
    """Every rank's rows, in rank order, without gradient.

    Args:
        rows: ``[n, D]``; n may differ from rank to rank, and may be 0.
        sizes: n of every rank.

    Returns:
        ``[N, D]``, N the sum of ``sizes``.
    """
    if not is_distributed():
        return rows.detach()
    longest = max(sizes)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_texts(texts: Kind, sizes: list[int]) -> Kind:
    """The encoded texts of the ranks that share them, in rank order, without gradient; ``sizes`` counts each rank's."""
    if len(sizes) == 1:
        return texts.map(Tensor.detach)
    texts = texts.in_places(tuple(max_over_ranks(places) for places in texts.places))
    return texts.map(partial(gather, sizes=sizes))


def scatter_sum(gradient: Tensor, sizes: list[int]) -> Tensor:
    """The transpose of :func:`gather`: this rank's rows of the sum over ranks of ``gradient``.

    Args:
        gradient: ``[N, D]``, of this rank's loss with respect to the gathered rows.
        sizes: n of every rank.

    Returns:
        ``[n, D]``.
    """
    if not is_distributed():
        return gradient
    total = gradient.contiguous().clone()
    dist.all_reduce(total)
    start = sum(sizes[: rank()])
    return total[start : start + sizes[rank()]]


def sizes_of_ranks(size: int, device: torch.device) -> list[int]:
    """The sizes of all ranks, in rank order."""
    if not is_distributed():
        return [size]
    mine = torch.tensor([size], device=device)
    all_sizes = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(all_sizes, mine)
    return [int(n) for n in all_sizes]


class _Gather(torch.autograd.Function):
    """:func:`gather` with :func:`scatter_sum` as its gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return gather(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return scatter_sum(gradients[0], ctx.sizes), None


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Every rank's rows, in rank order: ``[n, D]`` -> ``[N, D]``.

    The gradient of a row is the sum of its gradients from the losses of all ranks.
    """
    if not is_distributed():
        return rows
    gathered: Tensor = _Gather.apply(rows, sizes_of_ranks(len(rows), rows.device))  # type: ignore[no-untyped-call]
    return gathered


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over ranks; a rank that had no queries adds zero.

    Large gradients are summed where they are, and small ones in buckets of :data:`BUCKET` bytes: one is packed while
    the one before it is summed. Which gradients share a bucket depends on their sizes alone, so sums are the same bits
    each time. Weights that are cut over ranks have the sum already.
    """
    if not is_distributed():
        return
    trained = [p for p in parameters if p.requires_grad and not is_cut(p)]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    under_way: list[Callable[[], None]] = []
    for bucket in _buckets([p.grad for p in trained if p.grad is not None]):
        under_way.append(_begin_sum(bucket))
        if len(under_way) > 1:
            under_way.pop(0)()
    for finish in under_way:
        finish()


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type whose bytes fill a bucket, or a larger one alone."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        size = gradient.nbytes + sum(each.nbytes for each in bucket)
        if bucket and (size > BUCKET or gradient.dtype != bucket[0].dtype or gradient.device != bucket[0].device):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _begin_sum(bucket: list[Tensor]) -> Callable[[], None]:
    """Begin to sum gradients over ranks; the function that is returned waits for the sums."""
    is_alone = len(bucket) == 1 and bucket[0].is_contiguous()
    flat = bucket[0].view(-1) if is_alone else torch.cat([gradient.flatten() for gradient in bucket])
    work = dist.all_reduce(flat, async_op=True)

    def finish() -> None:
        work.wait()
        if not is_alone:
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    return finish


def gathered_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a sharded module in the memory of rank 0's host, gathered tensor by tensor; others get none."""
    found = {}
    for name, tensor in module.state_dict().items():
        whole = gathered(tensor)
        if rank() == 0:
            found[name] = whole.cpu()
    return found


def sum_over_ranks(values: Tensor) -> Tensor:
    """Element-wise sum over ranks."""
    if is_distributed():
        values = values.clone()
        dist.all_reduce(values)
    return values


def max_over_ranks(value: int) -> int:
    """The largest of all ranks' numbers, on all of them."""
    if not is_distributed():
        return value
    largest = torch.tensor(value, device=kind_with(dist.get_backend()))
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on all of them."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
