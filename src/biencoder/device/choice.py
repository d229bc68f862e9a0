"""Which device to compute on, what is known about it, and in which numbers to compute."""

import contextlib

import torch

from biencoder.config.choices import AUTO, BF16, CPU, CUDA, FP32
from biencoder.device.cpu import Cpu
from biencoder.device.cuda import Cuda
from biencoder.device.device import Device
from biencoder.errors import UserError

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
    """``auto`` is ``bf16`` where the hardware has it, else ``fp32``. fp16 is never chosen."""
    if name != AUTO:
        return name
    return BF16 if facts(device).has_bf16() else FP32


def autocast(precision: str | None, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Matrix products in bf16 over float32 weights, or in float32; None leaves autocast as the caller has set it."""
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == BF16)
