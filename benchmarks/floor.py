"""What the parts of a training step would take at rates that the machine shows at the moment.

Products, of all layers, at the rate of PyTorch's for the same shapes; attention at that rate and one exponential a
score in each direction; what lies between two products read and written once; weights and moments likewise.
Nothing for anything else. Only products can be faster: where kernels do better than PyTorch, and in a last layer that
is run for the pooled tokens alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.peak import TOKENS, gflops, linear_shapes, seconds

IN_MEMORY = 2**26  # numbers of a tensor that no cache holds
IN_CACHE = 2**18  # of one that a core's own holds
# The gradient is read for its norm; then it, the weight and two moments are read, and all but it are written.
BYTES_A_WEIGHT = 4 * (1 + 4 + 3)


@dataclass(frozen=True)
class Floor:
    """Seconds that a step takes at these rates, by part, in the order of `benchmarks.profile.PARTS`."""

    products: float
    attention: float
    between: float
    optimizer: float


def floor(backbone: nn.Module, lengths: Sequence[int], dtype: torch.dtype) -> Floor:
    """Of a BERT-like model, for texts of these numbers of tokens, with products in ``dtype``."""
    config: Any = backbone.config
    tokens, layers, width, wide = sum(lengths), config.num_hidden_layers, config.hidden_size, config.intermediate_size
    linear = linear_shapes(backbone)
    rate = 1e9 * gflops(linear, dtype)
    scores = layers * config.num_attention_heads * sum(length**2 for length in lengths)
    # Forward two products a score, backward five: Dao et al. 2022, algorithm 4.
    score_flop = 7 * 2 * width // config.num_attention_heads
    return Floor(
        products=6 * tokens * sum(rows * columns for rows, columns in linear) / rate,
        attention=scores * score_flop / rate + 2 * scores / _exponentials_per_second(),
        between=layers * tokens * _bytes_between(width, wide, dtype.itemsize) / _bandwidth(TOKENS * wide),
        optimizer=sum(p.numel() for p in backbone.parameters()) * BYTES_A_WEIGHT / _bandwidth(IN_MEMORY),
    )


def _bytes_between(width: int, wide: int, narrow: int) -> int:
    """Of a token in a layer, in both directions; what products take or give has ``narrow`` bytes, the rest four."""
    # In: the product and what runs along; out: that again, for the next product, and normalised.
    norm = (narrow + 4 + 4 + 2 * narrow) * width
    # In: gradient and normalised; out: to what runs along, and to the product.
    norm_gradient = (4 + narrow + 4 + narrow) * width
    gelu, gelu_gradient = 2 * narrow * wide, 4 * narrow * wide
    return 2 * (norm + norm_gradient) + gelu + gelu_gradient


def _bandwidth(numbers: int) -> float:
    """Bytes a second, read and written alike, in a copy of so many numbers."""
    there, here = torch.randn(numbers), torch.empty(numbers)
    return 2 * here.nbytes / seconds(lambda: here.copy_(there))


def _exponentials_per_second() -> float:
    values, out = torch.randn(IN_CACHE), torch.empty(IN_CACHE)
    return IN_CACHE / seconds(lambda: torch.exp(values, out=out))
