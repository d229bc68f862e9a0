"""The machine's own limit: matrix products of a model's own shapes, and what training on the pairs takes of them.

Run as ``python -m benchmarks.peak WORKLOAD_JSON`` by `benchmarks.train`, in a process of its own: it prints JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import AutoModel, AutoTokenizer

from benchmarks.systems import read_pairs
from benchmarks.workload import Workload

REPEATS = 15
TOKENS = 2048  # rows of each product
GPU_TOKENS = 16_384
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def seconds(work: Callable[[], Any]) -> float:
    """The median of `REPEATS` times."""
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        wait_for_device()
        taken.append(time.perf_counter() - began)
    return median(taken)


def wait_for_device() -> None:
    """Until a GPU has computed what it was given, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def linear_shapes(model: nn.Module) -> list[tuple[int, int]]:
    """Outputs and inputs of each linear layer but the pooler's."""
    layers = [m for name, m in model.named_modules() if "pooler" not in name and isinstance(m, nn.Linear)]
    return [(layer.out_features, layer.in_features) for layer in layers]


def gflops(shapes: list[tuple[int, int]], dtype: torch.dtype, device: str = "cpu") -> float:
    """GFLOP/s over one product with each kind of these weights, of `TOKENS` rows on a CPU and more on a GPU."""
    kinds = sorted(set(shapes))
    tokens = TOKENS if device == "cpu" else GPU_TOKENS
    pairs = [
        (torch.randn(tokens, columns, device=device).to(dtype), torch.randn(rows, columns, device=device).to(dtype))
        for rows, columns in kinds
    ]

    def multiply() -> None:
        for values, weight in pairs:
            linear(values, weight)

    return sum(2 * tokens * rows * columns for rows, columns in kinds) / seconds(multiply) / 1e9


def main() -> None:
    """Print GFLOP/s in each precision, tokens a pair, and GFLOP a token of training in the linear layers."""
    work = Workload(**json.loads(sys.argv[1]))
    model = AutoModel.from_pretrained(work.model)
    shapes = linear_shapes(model)
    queries, passages = read_pairs(work.train_data)
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    ids = tokenizer(queries + passages, truncation=True, max_length=work.max_length)["input_ids"]
    limits = {
        "peaks": {name: gflops(shapes, dtype, work.device) for name, dtype in PRECISIONS.items()},
        "tokens_a_pair": sum(map(len, ids)) / len(queries),
        # Forward, gradient of the input, gradient of the weights: a multiplication and an addition each.
        "gflop_a_token": 6 * sum(rows * columns for rows, columns in shapes) / 1e9,
    }
    print(json.dumps(limits))


if __name__ == "__main__":
    main()
