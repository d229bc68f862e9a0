"""An NVIDIA GPU."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from biencoder.config.choices import BF16, FP16, FP32
from biencoder.device.allocator import give_back
from biencoder.device.device import Device
from biencoder.errors import UserError

FEWEST_ROWS = 64  # of a product
SHARE_OF_FREE = 0.6  # of the memory beside weights, gradients and moments, for activations
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACE = ":4096:8"  # with which cuBLAS adds in the same order each time (its manual, section 2.1.4)


class Cuda(Device):
    """The current CUDA device. It is busy with 65,536 tokens, and adds up whole embedding tables cheaply."""

    collectives = "nccl"
    precisions = (FP32, BF16, FP16)

    def take(self, number: int) -> None:
        """Let this thread compute on the GPU of that number."""
        torch.cuda.set_device(number)

    def best_precision(self) -> str:
        """bf16 on cards that multiply it (compute capability 8.0 and newer), fp16 on older ones."""
        return BF16 if torch.cuda.is_bf16_supported(including_emulation=False) else FP16

    @contextlib.contextmanager
    def same_bits(self, asked: bool) -> Iterator[None]:
        """PyTorch's deterministic algorithms, if asked. If it only warned, attention would stay as it is."""
        if not asked:
            yield
            return
        before = os.environ.get(CUBLAS_WORKSPACE)
        os.environ.setdefault(CUBLAS_WORKSPACE, FIXED_WORKSPACE)  # read when the first product is computed
        settings: Any = torch.utils.deterministic
        filled = settings.fill_uninitialized_memory
        asked_before = torch.are_deterministic_algorithms_enabled()
        warned_before = torch.is_deterministic_algorithms_warn_only_enabled()
        settings.fill_uninitialized_memory = False  # it costs time, and we read no number that nobody wrote
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(asked_before, warn_only=warned_before)
            settings.fill_uninitialized_memory = filled
            if before is None:
                del os.environ[CUBLAS_WORKSPACE]

    def rows_of_products(self, count: int) -> int:
        """Up to a sixteenth more rows than ``count``.

        cuBLAS searches a kernel for each new number of rows, which takes the host longer than the product takes the
        card. With sixteen numbers of rows an octave, it has soon seen all that come.
        """
        step = max(FEWEST_ROWS, (1 << count.bit_length()) // 32)
        return -(-count // step) * step

    def receive(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy through pinned memory, so that the host does not wait for it."""
        if tensor.device.type != "cpu":
            return tensor.to(device, non_blocking=True)
        return tensor.pin_memory().to(device, non_blocking=True)

    def default_activations(self, bytes_per_token: int, state: int) -> int:  # noqa: ARG002
        """Most of the memory that weights, gradients and moments leave.

        It depends on the card and not on what other programs hold at the moment: chunks decide which masks dropout
        draws. If other programs leave too little, chunks become smaller when memory runs out.
        """
        whole, weights = self.memory(), torch.cuda.memory_allocated()
        if (left := whole - weights - state) <= 0:
            raise UserError(
                f"--device cuda: the card has {whole / 1e9:.1f} GB, and this model takes {(weights + state) / 1e9:.1f} "
                "GB for weights, gradients and moments, before any text; take a smaller model, give --lora-rank, or "
                "train on --device cpu"
            )
        return int(SHARE_OF_FREE * left)

    def memory(self) -> int:
        """Bytes of the current card's memory."""
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory

    def held(self) -> int:
        """Bytes of the card's memory that tensors take."""
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """The most bytes of the card's memory that tensors have taken."""
        return torch.cuda.max_memory_allocated()

    def free_unused(self) -> None:
        """Empty PyTorch's cache of the card's memory, and return the host's free pages."""
        give_back(beyond=0)
        torch.cuda.empty_cache()
