"""The token budget: measured on the model, in proportion to the bytes."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from torch.autograd.graph import saved_tensors_hooks

from biencoder import Encoder
from biencoder.data.batching import pack
from biencoder.model.pretrained import checkpoint_activations
from biencoder.training import memory


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    encoder = Encoder.load(tiny_model(tmp_path, dropout=True), pooling="mean")
    encoder.backbone.train()
    return encoder


def test_a_token_costs_a_plausible_number_of_bytes(encoder: Encoder) -> None:
    """A BERT layer keeps about 20 times its width for the backward pass (Korthikanti et al. 2022), and attention."""
    short, long = (memory.activation_bytes_per_token(encoder, length) for length in (8, 96))
    widths = 2 * 32 * 4  # layers x hidden size x bytes
    assert 8 * widths < short < 60 * widths
    assert short < long < short + 3 * 2 * 4 * 96 * 4  # at most three [L, L] matrices a head and layer


def test_the_measure_does_not_count_weights(encoder: Encoder) -> None:
    before = memory.activation_bytes_per_token(encoder, 16)
    assert before * 16 < sum(p.numel() * 4 for p in encoder.backbone.parameters())
    encoder.precision = "bf16"
    assert memory.activation_bytes_per_token(encoder, 16) < 1.3 * before


def test_gradient_checkpointing_and_evaluation_cost_less(encoder: Encoder) -> None:
    before = memory.activation_bytes_per_token(encoder, 32)
    encoder.backbone.eval()
    assert memory.activation_bytes_per_token(encoder, 32) < before
    encoder.backbone.train()
    checkpoint_activations(encoder.backbone)
    assert memory.activation_bytes_per_token(encoder, 32) < before / 2


def test_the_budget_is_kept(encoder: Encoder) -> None:
    """What autograd really keeps for as many tokens as the budget allows is no more than the budget."""
    budget = 4_000_000
    chunk, keep = memory.token_budget(encoder, budget, 32)
    assert chunk == keep // 2
    kept: dict[int, int] = {}
    alive = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        encoder.embed(pack([[5] * 32] * (keep // 32)))
    assert 0.7 * budget < sum(kept.values()) < 1.1 * budget


def test_more_bytes_are_more_tokens_within_bounds(encoder: Encoder) -> None:
    budgets = [memory.token_budget(encoder, budget, 64) for budget in (1, 10**6, 10**7, 10**9, 10**12)]
    assert budgets[0] == (64, 64)  # one text goes through, whatever it costs
    assert budgets == sorted(budgets)
    assert budgets[-1][0] == memory.LARGEST_CHUNK["cpu"]
    assert all(keep >= chunk for chunk, keep in budgets)


def test_the_default_grows_with_the_model_and_fits_the_machine(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory.default_budget(encoder) == min(memory.LOWEST_DEFAULT, memory.machine_memory() // 2)
    monkeypatch.setattr(memory, "machine_memory", lambda: 10**9)
    assert memory.default_budget(encoder) == 5 * 10**8
    monkeypatch.setattr(memory, "machine_memory", lambda: 10**15)
    monkeypatch.setattr(memory, "LOWEST_DEFAULT", 0)
    weights = sum(p.numel() * 4 for p in encoder.backbone.parameters())
    assert memory.default_budget(encoder) == memory.WEIGHTS_TIMES * weights


def test_machine_memory_is_that_of_a_machine() -> None:
    assert 10**8 < memory.machine_memory() < 10**14
