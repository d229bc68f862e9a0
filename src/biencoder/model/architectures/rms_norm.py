"""Root mean square normalisation (Zhang and Sennrich 2019) in one call instead of six, on devices that have it."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from biencoder.config.choices import CUDA

USUAL = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "EuroBertRMSNorm"}


def patch_rms_norms(backbone: nn.Module) -> None:
    """Let each normalisation that multiplies by its weight alone take the fastest way."""
    for module in backbone.modules():
        if type(module).__name__ in USUAL:
            module.forward = MethodType(_forward, module)


def _forward(norm: Any, hidden: Tensor) -> Tensor:
    """``[…, D]`` -> ``[…, D]``, computed in float32."""
    if hidden.device.type != CUDA or norm.weight.dtype != torch.float32:
        original: Tensor = type(norm).forward(norm, hidden)
        return original
    return rms_norm(hidden.float(), hidden.shape[-1:], norm.weight, norm.variance_epsilon)
