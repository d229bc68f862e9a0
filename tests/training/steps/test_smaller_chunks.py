"""Memory that runs out halves the chunks and changes nothing else."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import final_state, final_weights, metrics, small_run
from tiny import relative_error
from torch import Tensor, nn

from biencoder.errors import TrainingError
from biencoder.model.encoder import Encoder
from biencoder.model.packing import PackedBatch
from biencoder.model.representations.representation import Representation
from biencoder.training import preparation
from biencoder.training.memory.out_of_memory import OutOfMemoryError, memory_for_all, ran_out_of_memory
from biencoder.training.progress import TrainingProgress
from biencoder.training.run import train
from biencoder.training.setup import Setup
from biencoder.training.steps import loop
from biencoder.training.steps.nonfinite import NonFinite, count_or_stop

CPU_SAYS = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
CPU_SAYS += "allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
BATCH_TOKENS = 150  # of a batch of these runs, at least
MEASURED = 2  # calls of the model before training, which tell how much a token takes


def small_memory(monkeypatch: pytest.MonkeyPatch, tokens: int, error: Exception, start: int = 0) -> list[int]:
    """A machine whose memory takes so many tokens' activations, from a call of the model on; returns all calls' sizes.

    What is kept for the backward pass counts until that is done, as on a real one.
    """
    forward, held, calls = Encoder.forward, [0], []

    def encoding(encoder: Encoder, batch: PackedBatch) -> Representation:
        if not encoder.training:
            return forward(encoder, batch)
        size = batch.input_ids.numel()
        calls.append(size)
        if len(calls) > start and held[0] + size > tokens:
            held[0] = 0
            raise error
        texts = forward(encoder, batch)
        if texts.requires_grad:
            held[0] += size

            def freed(_: Tensor) -> None:
                held[0] -= size

            texts.vectors.register_hook(freed)
        return texts

    monkeypatch.setattr(Encoder, "forward", encoding)
    return calls


def chunks_of(monkeypatch: pytest.MonkeyPatch, chunk: int, keep: int) -> None:
    """Runs begin with these sizes."""
    monkeypatch.setattr(preparation, "token_budget", lambda *_: (chunk, keep, sys.maxsize))


def assert_close(got: Path, want: Path, tolerance: float) -> None:
    one, other = final_weights(got), final_weights(want)
    for name in other:
        if not name.endswith("key.bias"):  # its true gradient is 0, and AdamW makes a step of the rounding
            assert np.abs(one[name] - other[name]).max() <= tolerance * np.abs(other[name]).max(), name


def test_the_step_is_taken_again_with_half_and_the_run_is_what_it_would_have_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batch, negatives and dropout are the same, so that the gradient is, up to the order of sums."""
    config = small_run(tmp_path, dropout=True, max_steps=6)
    found: list[list[Tensor]] = []

    def remember(parameters: list[nn.Parameter]) -> None:
        found.append([p.grad.clone() for p in parameters if p.grad is not None])

    monkeypatch.setattr("biencoder.training.steps.train_step.sum_gradients", remember)
    whole = replace(config, output_dir=tmp_path / "whole")
    with monkeypatch.context() as roomy:
        calls = small_memory(roomy, 10**9, RuntimeError(CPU_SAYS))
        train(whole)
    largest, steps_before = max(calls), 3
    assert len(calls) == MEASURED + 6  # a chunk a batch
    assert largest > BATCH_TOKENS
    with monkeypatch.context() as tight:
        small_memory(tight, largest // 2, RuntimeError(CPU_SAYS), start=MEASURED + steps_before)
        train(config)
    wanted, got = found[steps_before], found[6 + steps_before]
    assert relative_error(torch.cat([g.flatten() for g in got]), torch.cat([g.flatten() for g in wanted])) <= 1e-5
    assert_close(config.output_dir, whole.output_dir, 1e-5)
    for one, other in zip(metrics(config.output_dir), metrics(whole.output_dir), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
    tokens = final_state(config.output_dir)["tokens"]
    assert tokens["chunk"] <= largest // 2
    assert tokens["keep"] <= largest // 2 < final_state(whole.output_dir)["tokens"]["keep"]
    said = [line for line in capsys.readouterr().out.splitlines() if "memory ran out" in line]
    assert 1 <= len(said) <= 2
    assert said[-1].endswith(
        f"in chunks of up to {tokens['chunk']:,} tokens, with the same batch and the same negatives"
    )


@pytest.mark.parametrize("start", [0, 2])
def test_a_run_that_began_with_the_smaller_chunks_has_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    """From the first step on, the run is the one that began with them; in its midst, a resumed run has them too."""
    config = small_run(tmp_path, dropout=True, max_steps=6, save_steps=4)
    chunks_of(monkeypatch, 200, 200)
    with monkeypatch.context() as tight:
        small_memory(tight, 100, MemoryError(), start)
        train(config)
    tokens = final_state(config.output_dir)["tokens"]
    assert tokens["chunk"] <= 100
    again = replace(config, output_dir=tmp_path / "again")
    with monkeypatch.context() as tight:
        if start == 0:
            chunks_of(tight, tokens["chunk"], tokens["keep"])
            train(again)
        else:
            small_memory(tight, 100, MemoryError(), start)
            tight.setattr(loop, "count_or_stop", stop_at(5))
            with pytest.raises(KeyboardInterrupt):
                train(again)
            tight.undo()
            train(again)
    got, want = final_weights(again.output_dir), final_weights(config.output_dir)
    assert all(np.array_equal(got[name], want[name]) for name in want)
    assert final_state(again.output_dir)["tokens"] == tokens


def stop_at(step: int) -> Callable[[Setup, TrainingProgress, NonFinite | None], None]:
    """Stands for what is called after each step, and ends the run after ``step``."""

    def stopping(setup: Setup, progress: TrainingProgress, nonfinite: NonFinite | None) -> None:
        if progress.step == step:
            raise KeyboardInterrupt
        count_or_stop(setup, progress, nonfinite)

    return stopping


def test_chunks_do_not_depend_on_which_batch_was_prepared_ahead(tmp_path: Path) -> None:
    """A batch that was cut for larger chunks is the one that is cut for smaller ones."""
    config = small_run(tmp_path, temperature=0.05)
    encoder = Encoder.load(config.model)
    from biencoder.data.table import ExampleTable

    examples = ExampleTable.from_files([tmp_path / "pairs.jsonl"])
    _, made = preparation.set_up(config, encoder, examples, None)  # type: ignore[arg-type]
    plan = made.sampler.plan(0)
    for large, small in ((10**9, 100), (100, 50), (70, 60), (100, 1), (50, 50)):
        recut = replace(made.batcher, chunk_tokens=large)(plan).in_chunks_of(small)
        wanted = replace(made.batcher, chunk_tokens=small)(plan)
        assert [chunk.index.tolist() for chunk in recut.chunks] == [chunk.index.tolist() for chunk in wanted.chunks]
        for one, other in zip(recut.chunks, wanted.chunks, strict=True):
            assert one.batch.input_ids.equal(other.batch.input_ids)
            assert one.batch.lengths == other.batch.lengths


def test_when_one_text_is_too_much_the_run_says_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_run(tmp_path, save_steps=1)
    small_memory(monkeypatch, 5, RuntimeError(CPU_SAYS), start=4)
    with pytest.raises(
        TrainingError, match=r"memory runs out with one text at a time, of \d+ tokens at most"
    ) as caught:
        train(config)
    assert "--passage-max-len" in str(caught.value)
    assert "--gradient-checkpointing" in str(caught.value)
    assert capsys.readouterr().out.count("memory ran out") <= 8  # halved until each text was alone, and no further


def test_memory_that_runs_out_elsewhere_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_run(tmp_path)

    def fail(*_: Any) -> None:
        raise RuntimeError(CPU_SAYS)

    monkeypatch.setattr("biencoder.training.steps.train_step.sum_gradients", fail)
    with pytest.raises(TrainingError, match="memory ran out where smaller chunks do not help"):
        train(config)


def test_other_errors_are_not_taken_for_it() -> None:
    for other in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError(CPU_SAYS), KeyboardInterrupt()):
        assert not ran_out_of_memory(other)
    for error in (
        RuntimeError(CPU_SAYS),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
    ):
        assert ran_out_of_memory(error)
        with pytest.raises(OutOfMemoryError), memory_for_all():
            raise error
    with pytest.raises(ValueError, match="bad"), memory_for_all():
        raise ValueError("bad")


def test_what_pytorch_says_is_what_is_looked_for() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out_of_memory(caught.value)
