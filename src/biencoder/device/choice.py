"""Which device to compute on, what is known about it, and in which numbers to compute."""

import contextlib
from typing import TypeVar

import torch
from torch import nn

from biencoder.config.choices import AUTO, BF16, CPU, CUDA, FP16
from biencoder.device.cpu import Cpu
from biencoder.device.cuda import Cuda
from biencoder.device.device import Device
from biencoder.errors import UserError

Module = TypeVar("Module", bound=nn.Module)
HALF = {BF16: torch.bfloat16, FP16: torch.float16}
KNOWN: dict[str, Device] = {CPU: Cpu(), CUDA: Cuda()}
UNKNOWN = Device()


def facts(device: torch.device) -> Device:
    """What is known about a device, by its type."""
    return KNOWN.get(device.type, UNKNOWN)


def kind_of(name: str) -> str:
    """``cpu`` or ``cuda`` for what a person chose; ``cpu`` where there is no CUDA."""
    return CPU if name == CPU or not torch.cuda.is_available() else CUDA


def kind_with(collectives: str) -> str:
    """The kind of device whose tensors a backend of ``torch.distributed`` takes."""
    return next(kind for kind, device in KNOWN.items() if device.collectives == collectives)


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; under torchrun each rank takes the GPU of its local rank.

    Raises:
        UserError: CUDA is asked for and there is none.
    """
    if name == CUDA and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; use --device cpu or auto")
    return torch.device(CPU) if kind_of(name) == CPU else torch.device(CUDA, torch.cuda.current_device())


def choose_precision(name: str, device: torch.device) -> str:
    """``auto`` is the fastest precision that the hardware computes in: bf16, or fp16 on an older GPU, or fp32.

    Raises:
        UserError: fp16 is asked for on a device that gains nothing by it.
    """
    known = facts(device)
    if name == AUTO:
        return known.best_precision()
    if name not in known.precisions:
        raise UserError(
            f"--precision {name}: a {device.type.upper()} computes it no faster than fp32, and it overflows beyond "
            "65,504; use bf16 or fp32"
        )
    return name


def autocast(precision: str | None, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Products in bf16 or fp16 over float32 weights, or in float32; None leaves autocast as the caller has set it."""
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, HALF.get(precision, torch.bfloat16), enabled=precision in HALF)


def placed(module: Module, device: torch.device, what: str) -> Module:
    """The module, moved to a device.

    Raises:
        UserError: the device's memory is too small for it; ``what`` names it.
    """
    try:
        return module.to(device)
    except torch.OutOfMemoryError:
        size = sum(each.nbytes for each in module.parameters())
        raise UserError(
            f"{what}: its weights take {size / 1e9:.1f} GB, and there is less free memory on {device}; end other "
            "programs that use the GPU, take a smaller model, or give --device cpu"
        ) from None
