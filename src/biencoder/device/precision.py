"""Where to compute, and in which numbers."""

import contextlib

import torch

from biencoder.config.choices import AUTO, BF16, CPU, CUDA, FP32
from biencoder.errors import UserError


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; under torchrun each rank takes the GPU of its local rank.

    Raises:
        UserError: CUDA is asked for and there is none.
    """
    if name == CUDA and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; use --device cpu or auto")
    if name == CPU or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware; emulated ones are slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def choose_precision(name: str, device: torch.device) -> str:
    """``auto`` is ``bf16`` where the hardware has it, else ``fp32``. fp16 is never chosen."""
    if name != AUTO:
        return name
    return BF16 if has_bf16(device) else FP32


def autocast(precision: str | None, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Matrix products in bf16 over float32 weights, or in float32; None leaves autocast as the caller has set it."""
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == BF16)
