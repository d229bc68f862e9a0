"""A loss or gradient that is not finite: what is said of it, what is skipped, and that no weight ever sees it."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import final_state, final_weights, metrics, small_run
from torch import Tensor, nn

from biencoder.config import TrainConfig
from biencoder.distributed import sum_gradients
from biencoder.errors import TrainingError
from biencoder.model.encoder import Encoder
from biencoder.model.packing import PackedBatch
from biencoder.model.representations.representation import Representation
from biencoder.training.progress import TrainingProgress
from biencoder.training.run import train
from biencoder.training.setup import Setup
from biencoder.training.steps import nonfinite
from biencoder.training.steps.nonfinite import as_json, shown_mean

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return small_run(tmp_path)


def spoil_gradients(monkeypatch: pytest.MonkeyPatch, *calls: int, value: float = NAN) -> None:
    """Put ``value`` into one element of the gradient at these calls, counted from 1 over all runs of a test."""
    taken = iter(range(1, 10**6))

    def spoiling(parameters: list[nn.Parameter]) -> None:
        sum_gradients(parameters)
        if next(taken) in calls:
            gradient = next(p.grad for p in parameters if p.grad is not None)
            gradient.view(-1)[0] = value

    monkeypatch.setattr("biencoder.training.steps.train_step.sum_gradients", spoiling)


def spoil_text(monkeypatch: pytest.MonkeyPatch, tokens: list[int]) -> None:
    """Give every text that begins with these tokens a vector that is not a number, in training."""
    forward = Encoder.forward

    def spoiling(encoder: Encoder, batch: PackedBatch) -> Representation:
        found = forward(encoder, batch)
        if not encoder.training:
            return found
        texts = batch.input_ids.split(list(batch.lengths))
        bad = torch.tensor([text[: len(tokens)].tolist() == tokens for text in texts])
        return found.map(lambda vectors: vectors.masked_fill(bad[:, None], NAN))

    monkeypatch.setattr(Encoder, "forward", spoiling)


@pytest.mark.parametrize(("value", "written", "shown"), [(NAN, "NaN", "norm nan"), (INF, "Infinity", "norm inf")])
def test_a_gradient_that_is_not_finite_stops_and_names_the_batch(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, value: float, written: str, shown: str
) -> None:
    spoil_gradients(monkeypatch, 5, value=value)
    with pytest.raises(TrainingError) as caught:
        train(config)
    message = str(caught.value)
    assert "step 5: the loss is " in message
    assert shown in message
    assert f"The batch: 8 rows, {config.output_dir.parent / 'pairs.jsonl'}, lines " in message
    assert "The loss of each row is finite; only the gradient is not" in message
    assert "checkpoints/step-00000003, is good" in message
    *sound, last = metrics(config.output_dir)
    assert [line["step"] for line in sound] == [1, 2, 3, 4]
    assert all(math.isfinite(line["loss"]) and "nonfinite" not in line for line in sound)
    assert (last["step"], last["gradient_norm"]) == (5, written)
    ((file, lines),) = last["nonfinite"]["rows"].items()
    assert file == str(config.output_dir.parent / "pairs.jsonl")
    assert len(lines) == 8
    assert not last["nonfinite"]["suspects"]


def test_the_row_that_spoils_its_batch_is_named(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its passage is a negative of all others, whose losses are no numbers either: they are not to blame."""
    table = [json.loads(line) for line in (config.output_dir.parent / "pairs.jsonl").read_text().splitlines()]
    tokenizer = Encoder.load(config.model).tokenizer
    texts = {i: tokenizer(row["pos"][0])["input_ids"] for i, row in enumerate(table, 1)}
    spoil_text(monkeypatch, texts[31])
    with pytest.raises(TrainingError, match=r"It comes from .*pairs\.jsonl, line 31\. Stopped before") as caught:
        train(replace(config, seed=1))
    assert "the loss is nan" in str(caught.value)
    last = metrics(config.output_dir)[-1]
    assert last["loss"] == "NaN"
    assert list(last["nonfinite"]["suspects"].values()) == [[31]]
    assert 31 in next(iter(last["nonfinite"]["rows"].values()))


def test_skipped_steps_leave_weights_and_optimizer_and_are_counted_everywhere(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    seen: list[list[Tensor]] = []

    def remember(setup: Setup, *args: Any) -> Any:
        weights = [p.detach().clone() for p in setup.encoder.parameters()]
        moments = [value.clone() for state in setup.optimizer.state.values() for value in state.values()]
        seen.append([*weights, *moments])
        return count_or_stop(setup, *args)

    count_or_stop = nonfinite.count_or_stop
    monkeypatch.setattr("biencoder.training.steps.loop.count_or_stop", remember)
    spoil_gradients(monkeypatch, 3, 4, 9)
    with caplog.at_level(logging.WARNING):
        assert train(replace(config, on_nonfinite="skip")) is not None
    for step, was_taken in enumerate([True, False, False, True, True, True, True, False], 1):
        assert any(not torch.equal(a, b) for a, b in zip(seen[step - 1], seen[step], strict=True)) == was_taken
    assert "Skipped: 2 in a row, at most 10; 2 in all" in caplog.text
    assert "Skipped: 1 in a row, at most 10; 3 in all" in caplog.text
    assert [line["step"] for line in metrics(config.output_dir) if "nonfinite" in line] == [3, 4, 9]
    assert final_state(config.output_dir)["skipped"] == {"total": 3, "in_a_row": 0, "overflows": 0}
    assert json.loads((config.output_dir / "eval.json").read_text())["skipped_steps"] == 3
    said = "3 of 14 steps were skipped: their loss or gradient was not finite."
    assert said in capsys.readouterr().out
    assert said in (config.output_dir / "README.md").read_text()


def test_no_more_than_so_many_in_a_row_are_skipped(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_gradients(monkeypatch, 2, 4, 5, 6)
    with pytest.raises(TrainingError, match=r"^step 6: .* 2 steps before it were skipped, and --max-nonfinite is 2"):
        train(replace(config, on_nonfinite="skip", max_nonfinite=2))
    assert max((config.output_dir / "checkpoints").glob("step-*")).name == "step-00000003"


def test_a_run_that_stopped_goes_on_with_skip_and_ends_as_one_that_skipped_from_the_start(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, counts included."""
    spoil_text(monkeypatch, Encoder.load(config.model).tokenizer("word30 word130")["input_ids"][:-1])
    whole = replace(config, on_nonfinite="skip", output_dir=config.output_dir.parent / "whole")
    train(whole)
    assert len([line for line in metrics(whole.output_dir) if "nonfinite" in line]) == 2  # one an epoch
    with pytest.raises(TrainingError, match="--on-nonfinite skip"):
        train(config)
    train(replace(config, on_nonfinite="skip"))
    times = {"seconds", "queries_per_second", "tokens_per_second"}
    one, other = (
        [{k: v for k, v in line.items() if k not in times} for line in metrics(c.output_dir)] for c in (config, whole)
    )
    assert one == other
    got, want = final_weights(config.output_dir), final_weights(whole.output_dir)
    assert all(np.array_equal(got[name], want[name]) for name in want)
    assert final_state(config.output_dir)["skipped"] == final_state(whole.output_dir)["skipped"]


def test_ruined_weights_are_neither_saved_nor_skipped_over(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step whose gradient was finite can still write what is not."""

    def ruin_after(step: int) -> Callable[..., None]:
        def ruining(setup: Setup, progress: TrainingProgress, *args: Any) -> None:
            count_or_stop(setup, progress, *args)
            if progress.step == step:
                setup.trained[0].data.fill_(INF)

        return ruining

    count_or_stop = nonfinite.count_or_stop
    for name, step, message in (
        ("saved", 6, "step 6: the weights are no longer finite"),
        ("skipped", 4, "step 5: .*The weights themselves are not finite: an earlier step ruined them"),
    ):
        folder = config.output_dir.parent / name
        monkeypatch.setattr("biencoder.training.steps.loop.count_or_stop", ruin_after(step))
        with pytest.raises(TrainingError, match=message):
            train(replace(config, output_dir=folder, on_nonfinite="skip"))
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000003"]


def test_numbers_that_json_has_not_are_words_that_float_reads() -> None:
    record = {"loss": NAN, "evaluation": {"a": INF, "b": -INF, "c": 0.5}, "step": 3}
    written = json.loads(json.dumps(as_json(record), allow_nan=False))
    assert written == {"loss": "NaN", "evaluation": {"a": "Infinity", "b": "-Infinity", "c": 0.5}, "step": 3}
    assert math.isnan(float(written["loss"]))
    assert float(written["evaluation"]["b"]) == -INF


def test_the_mean_that_is_shown_says_what_is_not_in_it() -> None:
    assert shown_mean([1.0, 2.0]) == "1.5000"
    assert shown_mean([1.0, NAN, 2.0, INF]) == "1.5000 (2 of 4 not finite)"
    assert shown_mean([NAN]) == "nan (1 of 1 not finite)"
