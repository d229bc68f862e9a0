"""Linear layers after the pooling, as sentence-transformers' ``Dense`` modules.

Shapes: N texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)
}


@dataclass(frozen=True)
class DenseLayer:
    """What a layer is, without its weights.

    Attributes:
        inputs: dimensions of a vector before it.
        outputs: dimensions after it.
        bias: it adds a vector to each.
        activation: a name in :data:`ACTIVATIONS`.
        residual: the vector before it is added to the one after it, through a matrix where their sizes differ.
    """

    inputs: int
    outputs: int
    bias: bool
    activation: str
    residual: bool = False


class Projection(nn.Module):
    """A linear layer with an activation, as sentence-transformers' ``Dense`` module: ``f(Wx + b)``, plus x if asked.

    Args:
        layer: its sizes and kind.
    """

    def __init__(self, layer: DenseLayer) -> None:
        super().__init__()
        self.layer = layer
        self.linear = nn.Linear(layer.inputs, layer.outputs, bias=layer.bias)
        self.activation = ACTIVATIONS[layer.activation]()
        self.residual: nn.Module | None = None
        if layer.residual:
            same = layer.inputs == layer.outputs
            self.residual = nn.Identity() if same else nn.Linear(layer.inputs, layer.outputs, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """``[N, inputs]`` -> ``[N, outputs]``."""
        projected: Tensor = self.activation(self.linear(vectors))
        return projected if self.residual is None else projected + self.residual(vectors)


def projections(layers: Sequence[DenseLayer], width: int, weights: Sequence[Mapping[str, Tensor]]) -> list[Projection]:
    """Layers with their weights.

    Args:
        layers: in order.
        width: dimensions of what the first one gets.
        weights: of each layer, by name.

    Raises:
        ValueError: the layers do not fit one another, or weights do not fit their layer.
    """
    found = []
    for number, (layer, state) in enumerate(zip(layers, weights, strict=True), start=1):
        if layer.inputs != width:
            raise ValueError(f"its Dense layer {number} takes {layer.inputs} dimensions and gets {width}")
        projection = Projection(layer)
        try:
            projection.load_state_dict(dict(state))
        except RuntimeError as error:
            raise ValueError(f"the weights of its Dense layer {number} do not fit its config.json") from error
        found.append(projection)
        width = layer.outputs
    return found


def principal_directions(vectors_ND: Tensor, dim: int) -> Tensor:
    """The matrix of ``dim`` rows that keeps most of the inner products of vectors (Eckart and Young 1936).

    Returns:
        ``[dim, D]``: orthonormal rows, those that keep most first; rows of zeros after the first D.
    """
    vectors = vectors_ND.double()
    _, directions_DD = torch.linalg.eigh(vectors.T @ vectors)  # in columns, the smallest first
    rows_DD = directions_DD.T.flip(0)
    largest = rows_DD.gather(1, rows_DD.abs().argmax(dim=1, keepdim=True))
    rows_DD = rows_DD * largest.sign()  # a direction and its opposite keep the same; processors differ in their choice
    kept = rows_DD[:dim]
    return pad(kept, (0, 0, 0, dim - len(kept))).float()
