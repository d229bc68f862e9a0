"""What differs from device to device: one small class for each, asked by the device's type.

Standard PyTorch code needs none of this. It is for chunk sizes, memory, half precision and collectives.
"""

import contextlib
import sys

import torch
from torch import Tensor

from biencoder.config.choices import BF16, FP32


class Device:
    """A device of which nothing special is known; the devices that we know override what they do better.

    Attributes:
        collectives: the backend of ``torch.distributed`` for tensors that lie here.
        precisions: in which products can be computed.
        largest_chunk: tokens beyond which a training step runs no faster.
        encode_tokens: the same for a forward pass without gradient.
        encode_texts: how many texts are tokenised at a time, and sorted by length, while those before are encoded.
        bulk: how many times as many texts as a CPU it is given between two waits for files.
        sums_embedding_gradients: a table's gradient is best added up row by row, for only the tokens of a chunk.
    """

    collectives = "gloo"
    precisions: tuple[str, ...] = (FP32, BF16)
    largest_chunk = 65_536
    encode_tokens = 65_536
    encode_texts = 1024
    bulk = 16
    sums_embedding_gradients = False

    def take(self, number: int) -> None:
        """Let this process compute on the device of that number on this machine."""

    def best_precision(self) -> str:
        """The fastest precision that the hardware itself computes in; an emulated one is slower than float32."""
        return FP32

    def same_bits(self, asked: bool) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
        """Inside of this block, if asked, the same step gives the same bits each time."""
        return contextlib.nullcontext()

    def rows_of_products(self, count: int) -> int:
        """How many rows to send through the layers for ``count`` tokens or texts."""
        return count

    def receive(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy of a CPU tensor on ``device``, without waiting for the copy where that is possible."""
        return tensor.to(device, non_blocking=True)

    def default_activations(self, bytes_per_token: int, state: int) -> int:  # noqa: ARG002
        """Bytes that activations may take when nobody set a budget.

        Args:
            bytes_per_token: of activations.
            state: bytes that gradients and moments are going to take.

        Raises:
            UserError: not even ``state`` fits.
        """
        return self.largest_chunk * bytes_per_token

    def memory(self) -> int:
        """Bytes of memory that one rank may use; beyond any model where that is not known."""
        return sys.maxsize

    def held(self) -> int:
        """Bytes that this process holds of the memory that ``--memory-budget`` bounds."""
        return 0

    def peak(self) -> int:
        """The most bytes that :meth:`held` could have said since this process began; 0 if that is not known."""
        return 0

    def free_unused(self) -> None:
        """Give memory that is kept but not in use back to the system."""
