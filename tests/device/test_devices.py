"""What is known about each device."""

import pytest
import torch

from biencoder.device import cpu
from biencoder.device.choice import facts, kind_of, kind_with


def test_numbers_of_rows_are_few_and_at_most_a_quarter_too_many() -> None:
    rows = {count: facts(torch.device("cpu")).rows_of_products(count) for count in range(1, 10_000)}
    assert all(count <= made < count + max(32, count / 4) for count, made in rows.items())
    assert len({made for made in rows.values() if 1024 < made <= 8192}) == 3 * 4
    assert rows[4096] == 4096


def test_a_gpu_computes_no_row_too_many() -> None:
    assert facts(torch.device("cuda")).rows_of_products(1001) == 1001


def test_half_of_the_memory_is_for_the_activations_of_all_ranks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    device = facts(torch.device("cpu"))
    monkeypatch.setattr(cpu, "machine_memory", lambda: 10**15)
    assert device.default_activations(1000) == 1000 * cpu.KEPT_TOKENS
    monkeypatch.setattr(cpu, "machine_memory", lambda: 10**6)
    assert device.default_activations(1000) == 500_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device.default_activations(1000) == 125_000


def test_a_device_that_we_do_not_know_is_used_plainly() -> None:
    device = facts(torch.device("meta"))
    tensor = torch.ones(3)
    assert device.receive(tensor, torch.device("meta")).is_meta
    assert device.rows_of_products(7) == 7
    assert not device.has_bf16()


def test_collectives_and_kinds_belong_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind_with("gloo") == "cpu"
    assert kind_with("nccl") == "cuda"
    for there, chosen in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=there: found)
        assert kind_of("auto") == kind_of("cuda") == chosen
        assert kind_of("cpu") == "cpu"


def test_machine_memory_is_that_of_a_machine() -> None:
    assert 10**8 < cpu.machine_memory() < 10**14
