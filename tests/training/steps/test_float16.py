"""Gradients are scaled for float16, and steps that overflow are skipped, counted and survive a kill.

A CPU scales as a GPU does; only the numbers in which it multiplies differ.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import final_state, final_weights, metrics, small_run
from torch.amp.grad_scaler import GradScaler

from biencoder.config import TrainConfig
from biencoder.errors import Stopped
from biencoder.training import preparation
from biencoder.training.run import train
from biencoder.training.setup import Setup
from biencoder.training.steps import loop

STEPS = 6


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return small_run(tmp_path, dropout=True, max_steps=STEPS, save_steps=2)


@pytest.fixture
def scale_by(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs scale their gradients, as they do in float16."""

    def scale(first: float, **settings: Any) -> None:
        monkeypatch.setattr(preparation, "loss_scaler", lambda *_: GradScaler("cpu", init_scale=first, **settings))

    return scale


def test_a_scale_that_fits_changes_nothing(config: TrainConfig, scale_by: Callable[..., None], tmp_path: Path) -> None:
    train(config)
    scale_by(2.0**12)
    train(replace(config, output_dir=tmp_path / "scaled"))
    plain, scaled = final_weights(config.output_dir), final_weights(tmp_path / "scaled")
    for name, weight in plain.items():
        assert (weight == scaled[name]).all()  # a power of two is taken away without a trace
    assert [line["gradient_norm"] for line in metrics(config.output_dir)] == [
        line["gradient_norm"] for line in metrics(tmp_path / "scaled")
    ]


def test_an_overflow_skips_the_step_and_halves_the_scale(
    config: TrainConfig, scale_by: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    scale_by(2.0**127)  # float32 overflows too
    train(config)
    lines = metrics(config.output_dir)
    overflowed = [line["overflowed"] for line in lines]
    assert overflowed[0]
    assert not overflowed[-1]
    count = sum(overflowed)
    assert [line["loss_scale"] for line in lines] == [2.0 ** (127 - sum(overflowed[:n])) for n in range(1, STEPS + 1)]
    assert all(isinstance(line["loss"], float) for line in lines)
    assert final_state(config.output_dir)["skipped"] == {"total": 0, "in_a_row": 0, "overflows": count}
    assert f"{count} of {STEPS} steps were skipped because their scaled gradient" in capsys.readouterr().out


def test_the_scale_survives_a_kill(
    config: TrainConfig, scale_by: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_by(2.0**10, growth_interval=2)  # it has grown when the run is stopped
    train(config)
    stopped = replace(config, output_dir=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        evaluate_save_or_stop = loop._evaluate_save_or_stop

        def stop_at_four(setup: Setup, progress: Any) -> None:
            evaluate_save_or_stop(setup, progress)
            if progress.step == 4:
                raise Stopped(15, "here")

        patch.setattr(loop, "_evaluate_save_or_stop", stop_at_four)
        with pytest.raises(Stopped):
            train(stopped)
    train(stopped)
    assert [line["loss_scale"] for line in metrics(tmp_path / "stopped")] == [
        line["loss_scale"] for line in metrics(config.output_dir)
    ]
    whole, resumed = final_weights(config.output_dir), final_weights(tmp_path / "stopped")
    assert all((weight == resumed[name]).all() for name, weight in whole.items())
    assert final_state(tmp_path / "stopped")["loss_scale"]["scale"] > 2.0**10


def test_a_loss_that_is_not_finite_is_no_overflow(
    config: TrainConfig, scale_by: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from biencoder.errors import TrainingError
    from biencoder.training.gradcache import accumulate_gradients
    from biencoder.training.steps import smaller_chunks

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        result = accumulate_gradients(*args, **kwargs)
        return replace(result, total=result.total * float("nan"))

    scale_by(2.0**10)
    monkeypatch.setattr(smaller_chunks, "accumulate_gradients", poisoned)
    with pytest.raises(TrainingError, match="step 1: the loss is nan"):
        train(config)
