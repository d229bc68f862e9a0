"""Products with the weights of linear layers, by compiled kernels where they exist, otherwise by PyTorch.

Shapes: T rows (tokens), I inputs, O outputs.
"""

import ctypes
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from biencoder.config.choices import CPU, CUDA
from biencoder.model.kernels.library import address, kernels

SIDE = 32  # rows of a tile's turn: space for a weight's gradient is a multiple of it


class Linear(Protocol):
    """``y = x W^T + bias`` and its gradients, with a weight that does not change meanwhile."""

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and outputs."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weight as it is laid out here."""

    def output(self, input_TI: Tensor) -> Tensor:
        """``[T, O]`` of the input's type."""

    def input_gradient(self, gradient_TO: Tensor) -> Tensor:
        """``[T, I]`` of the gradient's type."""

    def weight_gradient(self, gradient_TO: Tensor, input_TI: Tensor) -> Tensor:
        """``[O, I]`` float32."""


def linear(modules: Sequence[nn.Linear], dtype: torch.dtype, *, backward: bool) -> Linear:
    """One linear layer out of several with the same input; their outputs stand one behind the other.

    Args:
        modules: linear layers whose sizes are multiples of 32.
        dtype: the type of numbers in products.
        backward: gradients will be computed.
    """
    library = kernels() if modules[0].weight.device.type == CPU else None
    if dtype == torch.bfloat16 and library is not None and library.has_linear():
        return _TiledLinear(library, modules, backward=backward)
    return _PlainLinear(modules, dtype)


class _PlainLinear:
    """By PyTorch on any device, with the weight in the type of the products."""

    def __init__(self, modules: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self.weight_OI = torch.cat([module.weight.detach().to(dtype) for module in modules])
        self.bias_O = torch.cat([module.bias.detach().to(dtype) for module in modules])
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        return self.weight_OI.nbytes

    def output(self, input_TI: Tensor) -> Tensor:
        return torch.addmm(self.bias_O, input_TI, self.weight_OI.t())

    def input_gradient(self, gradient_TO: Tensor) -> Tensor:
        return gradient_TO @ self.weight_OI

    def weight_gradient(self, gradient_TO: Tensor, input_TI: Tensor) -> Tensor:
        if gradient_TO.device.type == CUDA and self.dtype != torch.float32:
            return torch.mm(gradient_TO.t(), input_TI, out_dtype=torch.float32)  # summed and written in float32
        return (gradient_TO.t() @ input_TI).float()


class _TiledLinear:
    """By ``kernels/linear.cpp``, in bf16 with sums in float32, the weight laid out for both directions."""

    def __init__(self, library: ctypes.CDLL, modules: Sequence[nn.Linear], *, backward: bool) -> None:
        self.library, self.dtype = library, torch.bfloat16
        self.inputs, self.outputs = modules[0].in_features, sum(module.out_features for module in modules)
        self.bias_O = torch.cat([module.bias.detach().float() for module in modules])
        self.forward = torch.empty(self.outputs * self.inputs, dtype=torch.bfloat16)
        self.backward = torch.empty_like(self.forward) if backward else None
        first = 0
        for module in modules:
            weight, rows = module.weight.detach().float().contiguous(), module.out_features
            library.linear_layout(
                *(address(weight), rows, self.inputs, first, self.outputs),
                *(address(self.forward), address(self.backward), torch.get_num_threads()),
            )
            first += rows

    @property
    def nbytes(self) -> int:
        return self.forward.nbytes + (0 if self.backward is None else self.backward.nbytes)

    def output(self, input_TI: Tensor) -> Tensor:
        return self._product(input_TI, self.forward, self.outputs, self.bias_O)

    def input_gradient(self, gradient_TO: Tensor) -> Tensor:
        assert self.backward is not None, "asked for at the beginning"
        return self._product(gradient_TO, self.backward, self.inputs, None)

    def weight_gradient(self, gradient_TO: Tensor, input_TI: Tensor) -> Tensor:
        rows = len(input_TI)
        space = torch.empty(-(-rows // SIDE) * SIDE, self.inputs, dtype=torch.bfloat16)
        made = torch.empty(self.outputs, self.inputs)
        self.library.linear_weight_gradient(
            *(address(gradient_TO), address(input_TI), rows, self.outputs, self.inputs),
            *(address(space), address(made), torch.get_num_threads()),
        )
        return made

    def _product(self, x: Tensor, layout: Tensor, columns: int, bias: Tensor | None) -> Tensor:
        out = torch.empty(len(x), columns, dtype=x.dtype)
        self.library.linear_product(
            *(address(x), *x.shape, address(layout), columns, address(bias), address(out), torch.get_num_threads())
        )
        return out
