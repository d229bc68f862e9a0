"""Weights of which each rank holds some rows: what PyTorch's ``fully_shard`` (FSDP2) makes of a model.

While a layer computes, its weights are whole. At any other time a weight is a ``DTensor``, cut in its first dimension.
Whatever is done weight by weight, such as an average, a norm or a file, is done with the rows of each rank.

Shapes: R rows of a weight, over W ranks: ceil(R / W) on each, fewer or none on the last.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.functional import layer_norm

from biencoder.device.choice import choose_device


def is_sharded(module: nn.Module) -> bool:
    """Whether this module gathers its weights from all ranks for as long as it computes."""
    return isinstance(module, FSDPModule)


def is_cut(tensor: Tensor) -> bool:
    """Whether each rank holds some rows of the tensor."""
    return isinstance(tensor, DTensor)


def class_of(module: nn.Module) -> type:
    """The class of a module before it was sharded."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def device_of(weight: Tensor) -> torch.device:
    """Where a weight is when it is whole; rows of it may wait in the memory of the host meanwhile."""
    return choose_device(weight.device_mesh.device_type) if isinstance(weight, DTensor) else weight.device


def own(tensor: Tensor) -> Tensor:
    """This rank's rows of a cut tensor, in its memory and without gradient; a tensor that is not cut is its own."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_places(tensor: Tensor) -> slice:
    """Which rows of the whole tensor :func:`own` gives."""
    if not isinstance(tensor, DTensor):
        return slice(None)
    most = -(-len(tensor) // tensor.device_mesh.size())
    first = min(tensor.device_mesh.get_local_rank() * most, len(tensor))
    return slice(first, first + len(own(tensor)))


def cut_like(whole: Tensor, cut: Tensor) -> Tensor:
    """A whole tensor, cut as another one of its shape is, with a copy of this rank's rows; as it is if that is not."""
    if not isinstance(cut, DTensor):
        return whole
    return _with_rows(cut, whole[own_places(cut)].clone().to(own(cut).device))


def _with_rows(cut: DTensor, rows: Tensor) -> DTensor:
    """A tensor that is cut as another one is, of which these are this rank's rows."""
    return DTensor.from_local(
        rows, cut.device_mesh, cut.placements, run_check=False, shape=cut.shape, stride=cut.stride()
    )


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a cut tensor, where it computes; all ranks call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    return _with_rows(tensor, own(tensor).to(device_of(tensor))).full_tensor()


def widen_norms(module: nn.Module) -> None:
    """Let layer normalisations take gains that were gathered in half precision beside float32, as autocast does."""
    for norm in module.modules():
        if type(norm) is nn.LayerNorm:
            norm.forward = MethodType(_wide, norm)  # type: ignore[method-assign]


def _wide(norm: Any, hidden: Tensor) -> Tensor:
    gain, bias = (None if weight is None else weight.to(hidden.dtype) for weight in (norm.weight, norm.bias))
    return layer_norm(hidden, norm.normalized_shape, gain, bias, norm.eps)
