"""The token budget: measured on the model, in proportion to the bytes."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import bytes_kept, tiny_model

from biencoder import Encoder
from biencoder.device import cpu
from biencoder.model.adapting.lora import add_lora
from biencoder.model.files.pretrained import checkpoint_activations
from biencoder.model.packing import pack
from biencoder.training.memory import budget as memory
from biencoder.training.memory.state import state_of


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    encoder = Encoder.load(tiny_model(tmp_path, dropout=True), pooling="mean")
    encoder.train()
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


def test_the_measure_leaves_nothing_behind(encoder: Encoder) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    memory.activation_bytes_per_token(encoder, 64)
    before = tensors()
    memory.activation_bytes_per_token(encoder, 64)
    assert tensors() == before


def test_gradient_checkpointing_and_evaluation_cost_less(encoder: Encoder) -> None:
    before = memory.activation_bytes_per_token(encoder, 32)
    encoder.eval()
    assert memory.activation_bytes_per_token(encoder, 32) < before
    encoder.train()
    checkpoint_activations(encoder.backbone)
    assert memory.activation_bytes_per_token(encoder, 32) < before / 2


def test_activations_are_as_many_as_they_may(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd really keeps for as many tokens as activations may take is no more than that."""
    budget = 4_000_000
    monkeypatch.setattr(cpu.Cpu, "default_activations", lambda *_: budget)
    chunk, keep, _ = memory.token_budget(encoder, None, 32)
    assert chunk == keep // 2
    kept = bytes_kept(lambda: encoder.embed(pack([[5] * 32] * (keep // 32))))
    assert 0.7 * budget < kept < 1.1 * budget


@pytest.mark.parametrize("whole_process", [False, True])
def test_more_bytes_are_more_tokens_within_bounds(
    encoder: Encoder, whole_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = []
    for budget in (1, 10**7, 10**9, 10**10, 10**13):
        monkeypatch.setattr(cpu.Cpu, "default_activations", lambda *_, budget=budget: budget)
        budgets.append(memory.token_budget(encoder, budget if whole_process else None, 64)[:2])
    assert budgets[0] == (64, 64)  # one text goes through, whatever it costs
    assert budgets == sorted(budgets)
    assert budgets[-1][0] == cpu.Cpu.largest_chunk
    assert all(keep >= chunk for chunk, keep in budgets)


def test_the_size_of_chunks_does_not_depend_on_what_the_process_holds(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It decides in which order sums are rounded: the same command must give the same weights."""
    first = memory.token_budget(encoder, 3 * 10**9, 64)
    monkeypatch.setattr(cpu, "resident_bytes", lambda: 10**9 + 12_345_678)
    second = memory.token_budget(encoder, 3 * 10**9, 64)
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_a_budget_covers_the_weights_as_products_take_them(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "resident_bytes", lambda: 10**9)
    monkeypatch.setattr(memory, "prepared_bytes", lambda: 0)
    alone = memory.token_budget(encoder, 3 * 10**9, 64)
    monkeypatch.setattr(memory, "prepared_bytes", lambda: 4 * 10**8)
    beside = memory.token_budget(encoder, 3 * 10**9, 64)
    tokens = 4 * 10**8 / memory.HEADROOM / memory.activation_bytes_per_token(encoder, 64)
    assert alone[1] - beside[1] == pytest.approx(tokens, abs=1)
    assert alone[0] == beside[0]  # which kernels run does not change the cut


def test_a_budget_that_is_too_small_is_said(
    encoder: Encoder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.token_budget(encoder, 10**6, 64)
    assert "is too small: this model takes" in capsys.readouterr().out
    memory.token_budget(encoder, 10**10, 64)
    monkeypatch.setattr(cpu.Cpu, "default_activations", lambda *_: 1)
    memory.token_budget(encoder, None, 64)  # nobody set one
    assert not capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory as Linux counts it")
def test_a_process_stays_within_its_budget(minilm: str, tmp_path: Path) -> None:
    """The whole process, with the real model; most of a batch's chunks are replayed."""
    budget, batch_size = 1_300_000_000, 48
    rows = [{"query": f"q{i} " * 6, "pos": f"passage {i} of many " * 40} for i in range(2 * batch_size + 50)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "biencoder", "train", "--model", minilm, "--group-size", "1", "--max-steps", "2"]
    command += ["--train-data", str(tmp_path / "pairs.jsonl"), "--output-dir", str(tmp_path / "tuned")]
    command += ["--batch-size", str(batch_size), "--memory-budget", f"{budget // 10**6}MB", "--passage-max-len", "128"]
    command += ["--no-general-guard", "--no-cross-validate"]
    # A small process starts it: Linux counts the memory of the one that starts another into that one's peak.
    starter = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    starter += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", starter, *command], check=True, capture_output=True, text=True)
    assert int(done.stdout) * 1024 < 1.05 * budget


def test_the_default_keeps_so_many_tokens(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "machine_memory", lambda: 10**15)
    assert memory.token_budget(encoder, None, 64)[1] == cpu.KEPT_TOKENS


def learning(encoder: Encoder) -> int:
    state = state_of(encoder, 1)
    return state.gradients + state.moments


def test_gradients_and_moments_are_of_what_learns(encoder: Encoder) -> None:
    everything = learning(encoder)
    add_lora(encoder.backbone, rank=2, alpha=4.0, dropout=0.0, first_layer=1, base="base", seed=0)
    linear = (4 * (32 + 32) + (32 + 48) + (48 + 32)) * 2  # elements of A and B beside the six layers of one block
    assert learning(encoder) == 3 * 4 * linear < everything
