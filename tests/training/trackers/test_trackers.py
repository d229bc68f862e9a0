"""Trackers show what metrics.jsonl says, each line once, and neither their faults nor their silence reach the run."""

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_lines import with_flag
from runs import small_run, stop_in_step

from biencoder.config import TrainConfig
from biencoder.training.run import train
from biencoder.training.trackers import process
from biencoder.training.trackers.follower import Follower, state_path
from biencoder.training.trackers.mlflow import allowed
from biencoder.training.trackers.tracker import figures_of

RECORDS = [
    {"step": 0, "evaluation": {"ndcg@10": 0.25, "ndcg@10, 16 dimensions": 0.125}, "seconds": 0.5},
    {"step": 1, "epoch": 0.5, "loss": 2.0, "data_set": "faq", "overflowed": True, "mean_cosine": 0.5},
    {"step": 2, "epoch": 1.0, "loss": "NaN", "nonfinite": {"rows": {"pairs.jsonl": [3]}}},
]
# A library that writes down what it is told; `HOW` says what else it does.
FAKE_WANDB = """
import json, os, time
from pathlib import Path

HOW = {how!r}
TOLD = Path({told!r})

class Error(Exception):
    pass

class Settings:
    sync_dir = "here"
    def __init__(self, **settings): pass

def write(*what):
    with TOLD.open("a") as file:
        file.write(json.dumps(what) + "\\n")

class Run:
    url, settings = "https://example.org/run", Settings()
    def log(self, values, step):
        if HOW == "fails once" and not Path(str(TOLD) + ".failed").exists():
            Path(str(TOLD) + ".failed").touch()
            raise ConnectionError("connection refused")
        write("log", step, values)
    def finish(self, exit_code):
        write("finish", exit_code)

def init(**wanted):
    if HOW == "hangs":
        time.sleep(3600)
    if HOW == "fails":
        raise ConnectionError("connection refused\\nby everybody")
    if HOW == "dies":
        os._exit(3)
    write("init", wanted["id"], wanted["resume"], sorted(wanted["config"]))
    return Run()
"""


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Callable[[], list[Any]]]]:
    """Puts a library of the name wandb first in the path; what it returns gives what the library was told."""

    def install(how: str) -> Callable[[], list[Any]]:
        told = tmp_path / "told.jsonl"
        (tmp_path / "fake").mkdir()
        (tmp_path / "fake" / "wandb.py").write_text(FAKE_WANDB.format(how=how, told=str(told)))
        monkeypatch.syspath_prepend(str(tmp_path / "fake"))
        return lambda: [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []

    yield install
    sys.modules.pop("wandb", None)


def write_metrics(folder: Path, records: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trackers").mkdir(exist_ok=True)
    path = folder / "metrics.jsonl"
    with path.open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))
    return path


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def shown(folder: Path, name: str) -> int:
    """Lines that the tracker has; a run waits for it a few seconds only."""
    path = state_path(folder, name)
    return int(json.loads(path.read_text())["lines"]) if path.exists() else 0


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_figures_have_the_names_that_they_have_in_the_file() -> None:
    evaluation, step, nonfinite = map(figures_of, RECORDS)
    dims = "evaluation/ndcg@10, 16 dimensions"
    assert evaluation == (0, {"evaluation/ndcg@10": 0.25, dims: 0.125, "evaluation/seconds": 0.5})
    assert step == (1, {"epoch": 0.5, "loss": 2.0, "overflowed": 1.0, "mean_cosine": 0.5})
    guards = {"general English": {"ndcg@10": 0.5}, "/data/scifact": {"ndcg@10": 0.25}}
    wanted = {"guards/general English/ndcg@10": 0.5, "guards/data_scifact/ndcg@10": 0.25}
    assert figures_of({"step": 5, "guards": guards}) == (5, wanted)
    assert nonfinite.values.keys() == {"epoch", "loss"}
    assert math.isnan(nonfinite.values["loss"])


def test_mlflow_gets_names_that_it_allows() -> None:
    assert allowed("evaluation/ndcg@10, 16 dimensions") == "evaluation/ndcg_at_10 16 dimensions"


def events(folder: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of everything in TensorBoard's files, also of what it would not show."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    return [
        (value.tag, event.step, value.tensor.float_val[0])
        for path in sorted((folder / "trackers" / "tensorboard").iterdir())
        for event in loader.EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag != "config"
    ]


def test_tensorboard_shows_a_run_and_its_continuation_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first process ends in step 9, with a checkpoint of step 7: it shows step 8, which the second takes again."""
    pytest.importorskip("tensorboard")
    config = small_run(tmp_path, log_to="tensorboard")
    stop_in_step(9, config, monkeypatch)
    until(lambda: shown(config.output_dir, "tensorboard") == len(lines_of(config.output_dir)))
    assert len(lines_of(config.output_dir)) == 10
    train(config)
    lines = lines_of(config.output_dir)
    until(lambda: shown(config.output_dir, "tensorboard") == len(lines) == 17)
    got = events(config.output_dir)
    assert all(count == 1 for count in Counter((tag, step) for tag, step, _ in got).values())
    expected = [(tag, step, value) for step, values in map(figures_of, lines) for tag, value in values.items()]
    timings = ("second", "seconds")
    assert {(tag, step) for tag, step, _ in got} == {(tag, step) for tag, step, _ in expected}
    values = {(tag, step): value for tag, step, value in got}
    for tag, step, value in expected:
        if not tag.endswith(timings):
            assert values[tag, step] == pytest.approx(value), (tag, step)
    assert f"tensorboard --logdir {config.output_dir}/trackers/tensorboard" in capsys.readouterr().out


def test_a_tracker_that_comes_later_gets_the_steps_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_wandb: Callable[[str], Callable[[], list[Any]]]
) -> None:
    told = fake_wandb("works")
    config = small_run(tmp_path)
    stop_in_step(9, config, monkeypatch)
    train(replace(config, log_to=("wandb", "wandb")))
    until(lambda: ["finish", 0] in told())
    (_, _, resume, names), *logged, _ = told()
    assert (resume, names) == ("allow", sorted(config.to_dict()))
    assert [(step, list(values)) for _, step, values in logged] == [
        (step, list(values)) for step, values in map(figures_of, lines_of(config.output_dir))
    ]


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_the_real_library_takes_the_figures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, on this machine; a second process goes on in the same run."""
    if subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode:
        pytest.skip(f"needs a package that can be imported: pip install 'biencoder[{name}]'")
    for variable, value in {
        "HOME": str(tmp_path),
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }.items():
        monkeypatch.setenv(variable, value)
    folder = tmp_path / "out"
    write_metrics(folder, RECORDS[:1])
    first = follow(folder, name)
    assert [message for message in first if "failed" in message] == []
    assert first[-1] == {"missing": 0}
    identity = json.loads(state_path(folder, name).read_text())["id"]
    write_metrics(folder, RECORDS[1:])
    assert follow(folder, name)[-1] == {"missing": 0}
    assert json.loads(state_path(folder, name).read_text()) == {"id": identity, "lines": 3}


def follow(folder: Path, name: str, code: str = process.CODE, ending: str = "complete\n") -> list[dict[str, Any]]:
    """What a follower says that shows what there is and is told of the end at once."""
    order = {"tracker": name, "metrics": str(folder / "metrics.jsonl"), "config": {"batch_size": 8, "prompt": None}}
    command = [sys.executable, "-c", code, json.dumps(sys.path)]
    done = subprocess.run(command, input=f"{json.dumps(order)}\n{ending}", capture_output=True, text=True, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_package_that_is_missing_is_named_before_anything_starts(refused: Callable[..., None]) -> None:
    missing = [name for name in ("wandb", "trackio", "mlflow") if not _is_installed(name)]
    if not missing:
        pytest.skip("all trackers are installed")
    name = missing[0]
    refused(with_flag("train", "--log-to", name), f"--log-to {name}", f"pip install biencoder[{name}]")


def _is_installed(name: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode == 0


def test_an_unknown_tracker_is_refused(refused: Callable[..., None]) -> None:
    refused(with_flag("train", "--log-to", "tensorbord"), "--log-to must be one of", "did you mean tensorboard?")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("hangs", "wandb has not taken all figures yet"),
        ("fails", "wandb: ConnectionError: connection refused by everybody. The run goes on"),
        ("dies", "wandb: its process ended"),
    ],
)
def test_a_run_does_not_mind_a_broken_tracker(
    how: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fake_wandb: Callable[[str], Callable[[], list[Any]]],
) -> None:
    fake_wandb(how)
    shorter = "from biencoder.training.trackers import follower\nfollower.LAST_SECONDS = 3\nmain()\n"
    monkeypatch.setattr(process, "CODE", process.CODE.replace("main()\n", shorter))
    monkeypatch.setattr(process, "WAIT", 0.5)
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def remembered(*words: Any, **how: Any) -> "subprocess.Popen[str]":
        started.append(popen(*words, **how))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remembered)
    config = small_run(tmp_path, log_to="wandb", epochs=1)
    result = train(config)
    assert result is not None
    assert result.steps == 7
    assert json.loads((config.output_dir / "run.json").read_text())["finished"] is True
    (follower,) = started
    follower.wait(timeout=60)  # it ends, whatever the tracker does
    until(lambda: [message.startswith(said) for message in caplog.messages].count(True) == 1)


def test_lines_wait_for_a_tracker_that_has_failed(
    tmp_path: Path, fake_wandb: Callable[[str], Callable[[], list[Any]]]
) -> None:
    told = fake_wandb("fails once")
    said: list[dict[str, Any]] = []
    path = write_metrics(tmp_path / "out", RECORDS[:2])
    follower = Follower("wandb", path, {}, lambda **message: said.append(message))
    assert not follower.show()
    write_metrics(tmp_path / "out", RECORDS[2:])
    assert follower.show()
    follower.finish(is_complete=False)
    assert [each[:2] for each in told()[1:]] == [["log", 0], ["log", 1], ["log", 2], ["finish", 1]]
    assert said == [
        {"where": "https://example.org/run"},
        {"failed": "ConnectionError: connection refused"},
        {"missing": 0},
    ]


def test_a_line_that_is_being_written_is_shown_when_it_is_whole(
    tmp_path: Path, fake_wandb: Callable[[str], Callable[[], list[Any]]]
) -> None:
    told = fake_wandb("works")
    path = write_metrics(tmp_path / "out", RECORDS[:1])
    follower = Follower("wandb", path, {}, lambda **_: None)
    with path.open("a") as file:
        file.write('{"step": 1, "lo')
        file.flush()
        assert follower.show()
        assert len(told()) == 2
        file.write('ss": 2.0}\n')
    assert follower.show()
    assert told()[-1] == ["log", 1, {"loss": 2.0}]


def test_the_follower_of_a_killed_run_shows_what_is_left_and_ends(
    tmp_path: Path, fake_wandb: Callable[[str], Callable[[], list[Any]]]
) -> None:
    told = fake_wandb("works")
    write_metrics(tmp_path / "out", RECORDS)
    messages = follow(tmp_path / "out", "wandb", ending="")  # its standard input ends, and nobody said "complete"
    assert messages[-1] == {"missing": 0}
    assert told()[-2:] == [["log", 2, {"epoch": 1.0, "loss": told()[-2][2]["loss"]}], ["finish", 1]]


def test_another_tracker_does_not_make_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    config: TrainConfig = small_run(tmp_path)
    stop_in_step(9, config, monkeypatch)
    assert train(replace(config, log_to=("tensorboard",))) is not None
    before = {path: path.stat().st_mtime_ns for path in config.output_dir.rglob("*") if "trackers" not in path.parts}
    assert train(config) is None  # finished; files of trackers are no part of what was written
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert os.path.isdir(config.output_dir / "trackers")
