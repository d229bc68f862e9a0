"""What the processor can do."""

import contextlib
import re
from pathlib import Path
from typing import Any

import torch

# PyTorch's names, and what Linux calls the same.
FLAGS = {
    "avx2": "avx2",
    "fma3": "fma",
    "avx512_bw": "avx512bw",
    "avx512_dq": "avx512dq",
    "avx512_vl": "avx512vl",
    "avx512_bf16": "avx512_bf16",
    "amx_tile": "amx_tile",
    "amx_bf16": "amx_bf16",
}


def features() -> dict[str, Any]:
    """Whether the processor has each of :data:`FLAGS`, and more, as PyTorch says; PyTorch 2.10 leaves it to Linux."""
    known: Any = torch.cpu
    if hasattr(known, "get_capabilities"):
        capabilities: dict[str, Any] = known.get_capabilities()
        return capabilities
    return linux_features(Path("/proc/cpuinfo"))


def linux_features(cpuinfo: Path) -> dict[str, Any]:
    """The same as Linux says; nothing on other systems."""
    with contextlib.suppress(OSError):
        found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            there = set(found[1].split())
            return {name: flag in there for name, flag in FLAGS.items()}
    return {}
