"""What a step takes that sums gradients over processes: in one copy, in buckets, or in buckets during backward.

The last of these is only here: hooks begin a bucket as soon as its gradients are complete, while earlier layers are
still under way. The ways take turns, step by step.

torchrun --nproc_per_node 2 -m benchmarks.reduction
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.workload import print_table
from biencoder import Encoder
from biencoder.demo.mini_lm import find_model
from biencoder.distributed import _begin_sum, _buckets, barrier, process_group, rank, sum_gradients
from biencoder.model.architectures.native_layer import prepared_weights
from biencoder.model.packing import PackedBatch, pack
from biencoder.training.gradcache import _share_embedding_gradients

LENGTH = 128  # tokens of a text


def sum_in_one_copy(parameters: Sequence[nn.Parameter]) -> None:
    """All gradients, one behind the other."""
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = summed.view_as(parameter)


class DuringBackward:
    """Begins each bucket, in an order that all ranks share, when its gradients and those of all before are complete."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        tensors = [p.detach() for p in reversed(parameters)]  # the last layers come first
        sizes = [len(bucket) for bucket in _buckets(tensors)]
        order = iter(list(reversed(parameters)))
        self.buckets = [[next(order) for _ in range(size)] for size in sizes]
        self.bucket_of = {p: number for number, bucket in enumerate(self.buckets) for p in bucket}
        self.missing: list[int] = []
        self.begun: list[Callable[[], None]] = []
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._complete)

    def begin(self) -> None:
        """Count gradients from here."""
        self.missing, self.begun = [len(bucket) for bucket in self.buckets], []

    def finish(self) -> None:
        """Wait for all sums."""
        while len(self.begun) < len(self.buckets):
            self._begin_next()
        for wait in self.begun:
            wait()
        self.missing = []

    def _complete(self, parameter: torch.Tensor) -> None:
        if self.missing:
            self.missing[self.bucket_of[parameter]] -= 1  # type: ignore[index]
            while len(self.begun) < len(self.buckets) and self.missing[len(self.begun)] <= 0:
                self._begin_next()

    def _begin_next(self) -> None:
        gradients = []
        for parameter in self.buckets[len(self.begun)]:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
        self.begun.append(_begin_sum(gradients))


def step_seconds(encoder: Encoder, batch: PackedBatch, before: Callable[[], None], after: Callable[[], None]) -> float:
    """Of a forward and a backward pass, with the sum."""
    encoder.zero_grad()
    _share_embedding_gradients(encoder)
    barrier()
    began = time.perf_counter()
    with prepared_weights():
        loss = encoder.embed(batch).sum()
        before()
        loss.backward()
    after()
    barrier()
    return time.perf_counter() - began


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="a model folder; left out: MiniLM-L6 of the extra demo")
    parser.add_argument("--tokens", type=int, default=1024, help="of each process in a step")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--rounds", type=int, default=21)
    asked = parser.parse_args()
    with process_group("cpu"):
        encoder = Encoder.load(asked.model or find_model(), precision=asked.precision, device="cpu").train()
        torch.manual_seed(rank())
        batch = pack(torch.randint(999, 9999, (max(1, asked.tokens // LENGTH), LENGTH)).tolist())
        parameters = [p for p in encoder.parameters() if p.requires_grad]
        hooks = DuringBackward(parameters)
        ways: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "no sum": (lambda: None, lambda: None),
            "one copy": (lambda: None, lambda: sum_in_one_copy(parameters)),
            "buckets": (lambda: None, lambda: sum_gradients(parameters)),
            "buckets during backward": (hooks.begin, hooks.finish),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(asked.rounds + 1):
            for name, way in ways.items():
                taken = step_seconds(encoder, batch, *way)
                if number:  # the first one compiles
                    seconds[name].append(taken)
    if rank() == 0:
        rows = [[name, f"{1e3 * median(taken):,.0f}", f"{1e3 * min(taken):,.0f}"] for name, taken in seconds.items()]
        title = f"A step of {asked.tokens:,} tokens in {asked.precision}, {asked.rounds} rounds"
        print_table(title, ["gradients are summed", "median ms", "fastest ms"], rows)


if __name__ == "__main__":
    main()
