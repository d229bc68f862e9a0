"""``biencoder doctor``: prints what of biencoder runs on this machine, and what to do about what is missing."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import starmap
from pathlib import Path

from biencoder.config import DoctorConfig
from biencoder.terminal import say, table

Row = tuple[str, str, str]  # what, found, what to do

_NAMED = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?\s*(?:[>=]=\s*([\d.]+))?")
_EXTRA = re.compile(r"extra == ['\"](\w+)['\"]")
FOR_DEVELOPERS = ("bench", "test")
SMALL_DISK = 2_000_000_000  # bytes
SAME = 1e-4  # largest difference of a component of a vector of length 1


def run(config: DoctorConfig) -> None:  # noqa: ARG001 - one signature for all commands
    """The command: print a table, and a verdict."""
    rows = [*_machine(), *_kernels(), *_gpu(), *_packages()]
    table(rows, ["what", "found", "what to do"])
    wanting = [what for what, _, advice in rows if advice]
    say(f"\nTo look at: {', '.join(wanting)}" if wanting else "\nEverything is there.")


def _machine() -> Iterator[Row]:
    from biencoder.device.cpu import machine_memory

    python = "" if sys.version_info < (3, 14) else "biencoder is not tested on this version"
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}", ""
    yield "python", platform.python_version(), python
    yield "cores", f"{_usable_cores()} of {os.cpu_count()} may be used", ""
    yield "memory", f"{machine_memory() / 1e9:.1f} GB that a process may use", ""
    free = shutil.disk_usage(Path.cwd()).free
    yield "disk", f"{free / 1e9:.1f} GB free here", "" if free > SMALL_DISK else "a run writes checkpoints: free some"


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _kernels() -> Iterator[Row]:
    """Which compiled kernels this processor runs, and whether they compute what PyTorch does."""
    from biencoder.device.processor import features
    from biencoder.model.kernels.library import NEEDS, kind

    has = features()
    could = next((name for name, needs in NEEDS.items() if all(has.get(need, False) for need in needs)), None)
    found = kind()
    if could is None:
        yield "kernels", "none for this processor; PyTorch's own operations do the work", ""
    elif found is None:
        build = "install a C++ compiler (g++), then: pip install --force-reinstall --no-deps biencoder"
        yield "kernels", f"none, though the processor has {could}", build
    else:
        difference = _difference_to_pytorch()
        said = f"{found}; vectors differ from PyTorch's by at most {difference:.0e}"
        yield "kernels", said, "" if difference <= SAME else "these are wrong: please report this"


def _difference_to_pytorch() -> float:
    """The largest difference that kernels make to a component of a random model's vectors."""
    import numpy as np
    import torch
    from transformers import BertConfig, BertModel

    from biencoder.model.architectures.table import enable_packing
    from biencoder.model.encoder import Encoder
    from biencoder.model.files.settings import ModelSettings
    from biencoder.model.heads.dense import DenseHead
    from biencoder.model.kernels.library import without_kernels

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    backbone = BertModel(BertConfig(vocab_size=100, **sizes), add_pooling_layer=False)
    first_position = enable_packing(backbone)
    head = DenseHead(64, pooling="mean", normalize=True)
    settings = ModelSettings(pooling="mean", normalize=True, max_length=64)
    encoder = Encoder(backbone, head, None, settings, first_position=first_position).eval()
    draw = np.random.default_rng(0)
    texts = [draw.integers(5, 100, size=length, dtype=np.int32) for length in (3, 20, 64)]
    with without_kernels():
        plain = encoder.encode_tokens(texts)
    return float(np.abs(encoder.encode_tokens(texts) - plain).max())


def _gpu() -> Iterator[Row]:
    import torch

    if not torch.cuda.is_available():
        built = getattr(torch.version, "cuda", None)
        hint = "its driver or its card is not seen: nvidia-smi says more" if built else ""
        yield "GPU", f"none{f'; PyTorch is built for CUDA {built}' if built else ''}", hint
        return
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        precision = "bf16" if card.major >= 8 else "fp16"
        yield f"GPU {number}", f"{card.name}, {card.total_memory / 1e9:.0f} GB; --precision auto is {precision}", ""


def _packages() -> Iterator[Row]:
    """The packages that biencoder needs, and those of each extra that a user may want."""
    needed: dict[str, list[tuple[str, str]]] = {}
    for line in requires("biencoder") or []:
        of_extra, named = _EXTRA.search(line), _NAMED.match(line)
        assert named is not None
        needed.setdefault(of_extra[1] if of_extra else "", []).append((named[1], named[2] or "0"))
    yield from starmap(_package, needed.pop("", []))
    for extra, packages in needed.items():
        if extra not in FOR_DEVELOPERS:
            there = all(_installed(name) is not None for name, _ in packages)
            yield f"extra: {extra}", "installed" if there else f"not installed (pip install 'biencoder[{extra}]')", ""


def _package(name: str, least: str) -> Row:
    found = _installed(name)
    if found is None:
        return name, "missing", f"pip install '{name}>={least}'"
    return name, found, "" if _numbers(found) >= _numbers(least) else f"pip install '{name}>={least}'"


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
