"""Collectives over uneven shares, in three processes, and what they are without any."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import world
from torch import nn

from biencoder import distributed

SIZES = [2, 0, 3]
SHAPES = [(2,), (3, 2), (4, 5), (1,), (3, 2)]  # of gradients


def rows(rank: int) -> torch.Tensor:
    return torch.arange(SIZES[rank] * 2.0).view(-1, 2) + 10 * rank


def work(rank: int, _ranks: int, _folder: Path) -> dict[str, Any]:
    mine = rows(rank).requires_grad_()
    gathered = distributed.gather_with_gradient(mine)
    (gathered * (rank + 1) * torch.arange(1.0, 11.0).view(5, 2)).sum().backward()
    used, unused, frozen = (nn.Parameter(torch.zeros(n)) for n in (2, 3, 1))
    if rank == 0:  # the others have no queries, hence no gradient
        used.grad = torch.ones(2)
    if rank == 2:
        unused.grad = torch.full((3,), 5.0)
    frozen.requires_grad_(False)
    distributed.sum_gradients([used, unused, frozen])
    several = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed, "BUCKET", 40)  # bytes: some share a bucket, and one is larger
        for number, parameter in enumerate(several):
            parameter.grad = torch.full(SHAPES[number], float(rank + number))
        several[-1].grad = torch.full((2, 3), float(rank)).t()  # as it lies in memory, not one row behind the other
        distributed.sum_gradients(several)
    return {
        "place": [distributed.rank(), distributed.world_size()],
        "sizes": distributed.sizes_of_ranks(len(mine), mine.device),
        "gathered": gathered.detach(),
        "again": distributed.gather(mine, SIZES),
        "gradient": mine.grad,
        "several": [parameter.grad for parameter in several],
        "summed": [used.grad, unused.grad, frozen.grad],
        "total": distributed.sum_over_ranks(torch.tensor([1.0, rank])).tolist(),
        "told": distributed.broadcast_object({"rank": rank}),
    }


def test_collectives_over_uneven_shares(tmp_path: Path) -> None:
    everything = torch.cat([rows(rank) for rank in range(3)])
    weights = torch.arange(1.0, 11.0).view(5, 2) * (1 + 2 + 3)  # what all three losses say about a row
    starts = [0, 2, 2, 5]
    for rank, got in enumerate(world.run(3, tmp_path, work)):
        assert got["place"] == [rank, 3]
        assert got["sizes"] == SIZES
        assert torch.equal(got["gathered"], everything)
        assert torch.equal(got["again"], everything)
        assert torch.equal(got["gradient"], weights[starts[rank] : starts[rank + 1]])
        assert [None if g is None else g.tolist() for g in got["summed"]] == [[1.0, 1.0], [5.0, 5.0, 5.0], None]
        for number, gradient in enumerate(got["several"][:-1]):
            assert torch.equal(gradient, torch.full(SHAPES[number], 3.0 + 3 * number))
        assert torch.equal(got["several"][-1], torch.full((3, 2), 3.0))
        assert got["total"] == [3.0, 3.0]
        assert got["told"] == {"rank": 0}


def test_without_a_process_group_there_is_one_rank() -> None:
    mine = rows(2).requires_grad_()
    assert not distributed.is_distributed()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather_with_gradient(mine) is mine
    assert not distributed.gather(mine, [3]).requires_grad
    assert torch.equal(distributed.scatter_sum(mine, [3]), mine)
    assert distributed.sizes_of_ranks(3, mine.device) == [3]
    assert distributed.sum_over_ranks(torch.tensor(math.pi)).item() == torch.tensor(math.pi).item()
    assert distributed.broadcast_object("x") == "x"
    assert distributed.first_to_fail()
    with distributed.process_group("cpu"):
        assert not distributed.is_distributed()


PROGRAM = """
import sys
from biencoder import distributed
with distributed.process_group("cpu"):
    first = distributed.first_to_fail()
    # One write each: the two lines must not run into each other.
    sys.stdout.write(f"{distributed.rank()} of {distributed.world_size()} first={first}\\n")
    sys.stdout.flush()
assert not distributed.is_distributed()
"""


def test_torchrun_is_joined_and_one_rank_is_the_first_to_fail(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    lines = sorted(line for line in done.stdout.splitlines() if "first=" in line)
    assert [line.split(" first=")[0] for line in lines] == ["0 of 2", "1 of 2"]
    assert sum("first=True" in line for line in lines) == 1


GONE = """
import os, time
from biencoder import distributed
with distributed.process_group("cpu"):
    distributed.barrier()
    if distributed.rank() == 0:
        os._exit(9)  # and with it the store, as when the node goes
    time.sleep(1)
    print(f"first={distributed.first_to_fail()}", flush=True)
    os._exit(0)
"""


def test_when_the_node_of_the_rendezvous_is_gone_each_rank_says_what_it_knows() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", GONE],
            env=os.environ | group | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [9, 0]
    assert said[1].endswith("first=True\n")
