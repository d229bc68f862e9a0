"""A CPU."""

import os

from biencoder.config.choices import BF16, FP32
from biencoder.device.allocator import give_back, peak_resident_bytes, resident_bytes
from biencoder.device.cgroup import cgroup_limits
from biencoder.device.device import Device
from biencoder.device.processor import features

KEPT_TOKENS = 6144  # three chunks; a larger batch replays the rest
FEWEST_ROWS = 32  # of a product


class Cpu(Device):
    """Any CPU that PyTorch runs on. Beyond 2,048 tokens, a chunk falls out of its caches."""

    largest_chunk = 2048
    encode_tokens = 8192  # more takes more memory
    encode_texts = 4096
    bulk = 1
    sums_embedding_gradients = True

    def best_precision(self) -> str:
        """bf16 where the processor has AVX512-BF16 or AMX."""
        has = features()
        return BF16 if any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16")) else FP32

    def rows_of_products(self, count: int) -> int:
        """Up to a quarter more rows than ``count``.

        oneDNN compiles each product for its number of rows, which takes milliseconds and a megabyte each time. With
        four numbers of rows an octave, it has soon compiled all that come. Nothing attends to the rows beyond the last
        text.
        """
        step = max(FEWEST_ROWS, (1 << count.bit_length()) // 8)
        return -(-count // step) * step

    def default_activations(self, bytes_per_token: int, state: int) -> int:  # noqa: ARG002
        """The bytes of :data:`KEPT_TOKENS` tokens, and at most half of the machine's memory, which ranks share."""
        return min(self.memory() // 2, KEPT_TOKENS * bytes_per_token)

    def memory(self) -> int:
        """The machine's memory, which ranks share."""
        return machine_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def held(self) -> int:
        """Bytes that this process has in memory, after it has given back what it does not use."""
        give_back(beyond=0)
        return resident_bytes()

    def peak(self) -> int:
        """The most bytes that this process has had in memory."""
        return peak_resident_bytes()

    def free_unused(self) -> None:
        """Return free pages to the system."""
        give_back(beyond=0)


def machine_memory() -> int:
    """Bytes of memory that this process may use: the machine's memory, or less if a control group limits it."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *cgroup_limits()])
