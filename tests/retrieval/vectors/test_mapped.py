from pathlib import Path
from typing import Any

import numpy as np
import pytest
import world

from biencoder.distributed import process_group
from biencoder.model.parallel.sharing import is_first
from biencoder.retrieval.vectors import mapped
from biencoder.retrieval.vectors.mapped import map_vectors

BLOCKS = [np.full((2, 3), 1.0, np.float32), np.full((1, 3), 2.0, np.float32)]


def file_of(vectors: np.ndarray) -> str:
    """The inode of the file that an array is mapped from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split()
        first, last = (int(end, 16) for end in addresses.split("-"))
        if first <= vectors.ctypes.data < last:
            return inode
    raise LookupError


def on_a_rank(_rank: int, _ranks: int, _folder: Path) -> Any:
    with process_group("cpu"):
        together = map_vectors(iter(BLOCKS), 3)
        if not is_first():
            setattr(mapped, "_opened", lambda *_: None)  # noqa: B010 - as on another machine
        apart = map_vectors(iter(BLOCKS), 3)
        return [(each.tolist(), file_of(each)) for each in (together, apart)]


def test_ranks_of_one_machine_map_one_file(tmp_path: Path) -> None:
    (first, firsts_own), (second, seconds_own) = world.run(2, tmp_path, on_a_rank)
    assert first == second
    assert first[0] == np.concatenate(BLOCKS).tolist()
    assert seconds_own[0] == firsts_own[0] == first[0]
    assert seconds_own[1] != firsts_own[1]


@pytest.mark.parametrize("blocks", [BLOCKS, []])
def test_one_process_maps_all_blocks(blocks: list[np.ndarray]) -> None:
    found = map_vectors(iter(blocks), 3)
    assert np.array_equal(found, np.concatenate([np.empty((0, 3), np.float32), *blocks]))
