"""What is known about each device."""

import os

import pytest
import torch

from biencoder.device import cpu, cuda
from biencoder.device.choice import facts, kind_of, kind_with
from biencoder.errors import UserError


def test_numbers_of_rows_are_few_and_at_most_a_quarter_too_many() -> None:
    rows = {count: facts(torch.device("cpu")).rows_of_products(count) for count in range(1, 10_000)}
    assert all(count <= made < count + max(32, count / 4) for count, made in rows.items())
    assert len({made for made in rows.values() if 1024 < made <= 8192}) == 3 * 4
    assert rows[4096] == 4096


def test_numbers_of_rows_on_a_gpu_are_few_and_at_most_a_sixteenth_too_many() -> None:
    rows = {count: facts(torch.device("cuda")).rows_of_products(count) for count in range(1, 10_000)}
    assert all(count <= made < count + max(64, count / 16) for count, made in rows.items())
    assert len({made for made in rows.values() if 4096 < made <= 8192}) == 16
    assert rows[4096] == 4096


def test_half_of_the_memory_is_for_the_activations_of_all_ranks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    device = facts(torch.device("cpu"))
    monkeypatch.setattr(cpu, "machine_memory", lambda: 10**15)
    assert device.default_activations(1000, 0) == 1000 * cpu.KEPT_TOKENS
    monkeypatch.setattr(cpu, "machine_memory", lambda: 10**6)
    assert device.default_activations(1000, 0) == 500_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device.default_activations(1000, 0) == 125_000


def test_chunks_on_a_gpu_depend_on_the_card_and_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    device = facts(torch.device("cuda"))
    monkeypatch.setattr(cuda.Cuda, "memory", lambda _: 80 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5 * 10**9)
    assert device.default_activations(1000, 15 * 10**9) == 36 * 10**9


def test_a_card_that_is_too_small_for_the_model_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.Cuda, "memory", lambda _: 16 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5 * 10**9)
    with pytest.raises(UserError, match=r"--device cuda: the card has 16\.0 GB, and this model takes 20\.0 GB"):
        facts(torch.device("cuda")).default_activations(1000, 15 * 10**9)


def test_the_same_bits_are_asked_for_and_given_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cuda.CUBLAS_WORKSPACE, raising=False)
    for asked in (False, True):
        with facts(torch.device("cuda")).same_bits(asked):
            assert torch.are_deterministic_algorithms_enabled() == asked
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ.get(cuda.CUBLAS_WORKSPACE) == (cuda.FIXED_WORKSPACE if asked else None)
        assert not torch.are_deterministic_algorithms_enabled()
        assert cuda.CUBLAS_WORKSPACE not in os.environ


def test_what_a_program_had_asked_for_itself_stays() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with facts(torch.device("cuda")).same_bits(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_device_that_we_do_not_know_is_used_plainly() -> None:
    device = facts(torch.device("meta"))
    tensor = torch.ones(3)
    assert device.receive(tensor, torch.device("meta")).is_meta
    assert device.rows_of_products(7) == 7
    assert device.best_precision() == "fp32"


def test_collectives_and_kinds_belong_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind_with("gloo") == "cpu"
    assert kind_with("nccl") == "cuda"
    for there, chosen in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=there: found)
        assert kind_of("auto") == kind_of("cuda") == chosen
        assert kind_of("cpu") == "cpu"


def test_machine_memory_is_that_of_a_machine() -> None:
    assert 10**8 < cpu.machine_memory() < 10**14
