"""What differs from device to device: one small class for each, asked by the device's type.

Standard PyTorch code needs none of this. It is for chunk sizes, memory, half precision and collectives.
"""

import torch
from torch import Tensor


class Device:
    """A device of which nothing special is known; the devices that we know override what they do better.

    Attributes:
        collectives: the backend of ``torch.distributed`` for tensors that lie here.
        largest_chunk: tokens beyond which a forward pass runs no faster.
        sums_embedding_gradients: a table's gradient is best added up row by row, for only the tokens of a chunk.
    """

    collectives = "gloo"
    largest_chunk = 65_536
    sums_embedding_gradients = False

    def take(self, number: int) -> None:
        """Let this process compute on the device of that number on this machine."""

    def has_bf16(self) -> bool:
        """Whether bf16 matrix products run in hardware; emulated ones are slower than float32."""
        return False

    def rows_of_products(self, count: int) -> int:
        """How many rows to send through the layers for ``count`` tokens or texts."""
        return count

    def receive(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy of a CPU tensor on ``device``, without waiting for the copy where that is possible."""
        return tensor.to(device, non_blocking=True)

    def default_activations(self, bytes_per_token: int) -> int:
        """Bytes that activations may take when nobody set a budget."""
        return self.largest_chunk * bytes_per_token

    def held(self) -> int:
        """Bytes that this process holds of the memory that ``--memory-budget`` bounds."""
        return 0

    def free_unused(self) -> None:
        """Give memory that is kept but not in use back to the system."""
