"""A run that goes on from another, finished one."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import final_weights, metrics, small_run, stop_in_step
from safetensors.torch import load_file

from biencoder.config import TrainConfig
from biencoder.errors import UserError
from biencoder.training.run import train
from biencoder.training.setup import Setup
from biencoder.training.steps import start
from biencoder.training.steps.continuing import take_over


@pytest.fixture
def finished(tmp_path: Path) -> TrainConfig:
    """A run whose saved model is an average with its base, so that its best weights are others."""
    config = small_run(tmp_path, keep_base=0.5)
    assert train(config) is not None
    return config


def further(finished: TrainConfig, name: str, **changes: object) -> TrainConfig:
    run = finished.output_dir
    settings = {"model": str(run), "continue_from": run, "output_dir": run.parent / name, "keep_base": 0.0}
    return replace(finished, **(settings | changes))  # type: ignore[arg-type]


def test_it_starts_from_the_best_weights_and_the_optimizers_state(
    finished: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = []

    def watched(setup: Setup, run: Path) -> str:
        said = take_over(setup, run)
        weights = {name: weight.clone() for name, weight in setup.encoder.state_dict().items()}
        state = setup.optimizer.state[next(setup.encoder.parameters())]
        taken.append((weights, float(state["step"])))
        return said

    monkeypatch.setattr(start, "take_over", watched)
    config = further(finished, "more", epochs=1, learning_rate=1e-4)
    result = train(config)
    assert result is not None
    ((weights, steps),) = taken
    step = json.loads((finished.output_dir / "eval.json").read_text())["after_step"]
    best = finished.output_dir / "checkpoints" / f"best-{step:08d}"
    for name, weight in load_file(best / "model.safetensors").items():
        np.testing.assert_array_equal(weights[name], weight)
    assert steps == 14
    said = f"It continues {finished.output_dir}, from its best weights and the state of its optimizer."
    assert said in capsys.readouterr().out
    shared = said.replace(str(finished.output_dir), finished.output_dir.name)  # a card names no path
    assert shared in (config.output_dir / "README.md").read_text().replace("\\", "")
    after = train(replace(finished, output_dir=finished.output_dir))  # finished: nothing to do
    assert after is None
    assert len(metrics(config.output_dir)) == 7


def test_the_figure_before_is_that_of_the_saved_model(
    finished: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(replace(finished, output_dir=finished.output_dir.parent / "again"))
    assert first is not None
    second = train(further(finished, "more", epochs=1))
    assert second is not None
    assert second.before.metrics == first.after.metrics
    assert "cross-validation" not in capsys.readouterr().out.lower()


def test_a_killed_one_resumes_in_the_same_bits(finished: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = further(finished, "whole"), further(finished, "killed")
    train(whole)
    stop_in_step(5, killed, monkeypatch)
    train(killed)
    one, other = final_weights(whole.output_dir), final_weights(killed.output_dir)
    for name, weight in one.items():
        np.testing.assert_array_equal(weight, other[name])
    line = "It continues "
    assert line in (killed.output_dir / "README.md").read_text()


@contextmanager
def output_of(capsys: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    lines: list[str] = []
    capsys.readouterr()
    yield lines
    lines += capsys.readouterr().out.splitlines()


def test_without_checkpoints_or_with_other_weights_it_starts_from_the_saved_ones(
    finished: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with output_of(capsys) as lines:
        train(further(finished, "frozen", epochs=1, freeze_layers=1))
    assert any(
        line.endswith("from its saved weights alone, because it trained other weights than this run.") for line in lines
    )
    shutil.rmtree(finished.output_dir / "checkpoints")
    with output_of(capsys) as lines:
        train(further(finished, "alone", epochs=1))
    assert any(line.endswith("from its saved weights alone, because it has no checkpoint.") for line in lines)


def test_what_cannot_be_continued(finished: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished.output_dir
    with pytest.raises(UserError, match=r"--model other: --continue-from .* names the model already"):
        further(finished, "more", model="other")
    with pytest.raises(UserError, match=r"--continue-from .*model: is not the --output-dir of a run"):
        train(further(finished, "more", model=str(tmp_path / "model"), continue_from=tmp_path / "model"))
    unfinished = replace(finished, output_dir=tmp_path / "unfinished")
    stop_in_step(5, unfinished, monkeypatch)
    with pytest.raises(UserError, match=r"the run there is not finished"):
        train(further(finished, "more", model=str(unfinished.output_dir), continue_from=unfinished.output_dir))
    with pytest.raises(UserError, match=rf"--epochs was 2 and is 3.*--continue-from {run}"):
        train(replace(finished, epochs=3))
