"""An NVIDIA GPU."""

import torch
from torch import Tensor

from biencoder.device.allocator import give_back
from biencoder.device.device import Device

SHARE_OF_FREE = 0.6  # of the free memory, for activations


class Cuda(Device):
    """The current CUDA device. It is busy with 65,536 tokens, and adds up whole embedding tables cheaply."""

    collectives = "nccl"

    def take(self, number: int) -> None:
        """Let this process compute on the GPU of that number."""
        torch.cuda.set_device(number)

    def has_bf16(self) -> bool:
        """Whether the card multiplies bf16 matrices (compute capability 8.0 and newer)."""
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    def receive(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy through pinned memory, so that the host does not wait for it."""
        return tensor.pin_memory().to(device, non_blocking=True)

    def default_activations(self, bytes_per_token: int) -> int:  # noqa: ARG002 - one signature for all devices
        """Most of the memory that is free now."""
        free, _ = torch.cuda.mem_get_info()
        return int(SHARE_OF_FREE * free)

    def held(self) -> int:
        """Bytes of the card's memory that tensors take."""
        return torch.cuda.memory_allocated()

    def free_unused(self) -> None:
        """Empty PyTorch's cache of the card's memory, and return the host's free pages."""
        give_back(beyond=0)
        torch.cuda.empty_cache()
