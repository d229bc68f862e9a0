"""What the allocator is told, seen from outside of a process of its own."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
if sys.argv[1] == "tuned":
    import biencoder
    biencoder.Encoder
import torch
from biencoder.device.allocator import give_back, held_bytes

def step():
    kept = [torch.ones(size) for size in range(2_000_000, 12_000_000, 1_000_000)]

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
give_back(beyond=held_bytes() + 1)
held = held_bytes()
give_back(beyond=held - 1)
print(faults, held, held_bytes())
"""


def run(how: str) -> list[int]:
    plain = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}  # which importing biencoder sets
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], env=plain, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_until_it_is_given_back() -> None:
    plain, *_ = run("plain")
    faults, held, left = run("tuned")
    assert faults < plain / 10
    assert held > 150_000_000
    assert left < held - 150_000_000
