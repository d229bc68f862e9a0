"""Tensors in a safetensors file, to which each rank writes the rows that it holds.

Nothing is gathered, so no rank ever holds more than its rows. The file is like any other of its kind: eight bytes that
say how long the header is, a header in JSON that says where each tensor is, and the tensors themselves.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from biencoder.distributed import barrier, broadcast_object, rank
from biencoder.files import sync_file, system_errors
from biencoder.model.parallel.sharded import is_cut, own, own_places

NAMES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
ALIGNED = 8  # bytes, of which the header's length is a multiple

Answer = TypeVar("Answer")


def for_all(tensors: Mapping[str, Tensor], answer: Callable[[], Answer]) -> Answer:
    """Rank 0's answer to a question about files, on all ranks if they write these tensors together."""
    if not are_cut(tensors):
        return answer()
    found: Answer = broadcast_object(answer() if rank() == 0 else None)
    return found


def are_cut(tensors: Mapping[str, Tensor]) -> bool:
    """Whether each rank holds some rows of some of the tensors."""
    return any(map(is_cut, tensors.values()))


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write whole tensors, and wait until the disk has them; all ranks call it if any tensor is cut, or else one."""
    with system_errors(path):
        if are_cut(tensors):
            _save_rows(path, tensors)
        else:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
            sync_file(path)


def _save_rows(path: Path, tensors: Mapping[str, Tensor]) -> None:
    header, places, size = _layout(tensors)
    if rank() == 0:
        with path.open("wb") as file:
            file.write(header)
            file.truncate(size)
    barrier()
    with path.open("r+b") as file:
        for name, tensor in tensors.items():
            if is_cut(tensor) or rank() == 0:
                rows = own(tensor).cpu().contiguous()
                first = own_places(tensor).start or 0
                file.seek(places[name] + first * (tensor.nbytes // max(1, len(tensor)) if tensor.ndim else 0))
                file.write(rows.view(-1).view(torch.uint8).numpy().data)
    sync_file(path)
    barrier()  # the file is whole


def _layout(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int], int]:
    """The beginning of the file, where each tensor begins in it, and its length, all in bytes."""
    entries, places, end = {}, {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):  # each is aligned so
        tensor = tensors[name]
        places[name], start, end = end, end, end + tensor.nbytes
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    said = json.dumps(entries).encode()
    said += b" " * (-len(said) % ALIGNED)
    header = len(said).to_bytes(8, "little") + said
    return header, {name: len(header) + place for name, place in places.items()}, len(header) + end
