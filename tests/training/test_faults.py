"""A part of what `python -m benchmarks.faults` injects; that prints the table of docs/reliability.md."""

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_points import AtCall, AtOperation
from faults import Damage, Place

from biencoder.training.state.output_folder import OutputFolder

NEWEST = "checkpoints/step-00000008"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    memory = Path("/dev/shm")  # where syncs take no time
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Place(Path(folder) / "place")


def numbers_of(place: Place, name: str, part: str) -> list[int]:
    return [i for i, (event, path) in enumerate(place.operations) if event == name and part in path]


@pytest.mark.parametrize(
    ("name", "part", "how"),
    [
        ("mkdir", "checkpoints/.step-00000003.tmp", "kill"),
        ("fsync", ".step-00000006.tmp/optimizer.safetensors", "torn"),
        ("fsync", ".step-00000006.tmp/manifest.json", "torn"),
        ("rename", ".step-00000008.tmp", "kill"),
        ("remove", "step-00000003/", "kill"),
        ("rename", ".best-00000004.tmp", "kill"),
        ("rename", "config.json", "kill"),
        ("rename", "run.json", "kill"),
    ],
)
def test_a_run_killed_at_a_file_operation_ends_in_the_same_bytes(place: Place, name: str, part: str, how: str) -> None:
    outcome = place.inject(AtOperation(numbers_of(place, name, part)[-1], how))
    assert outcome.codes == [-9]
    assert outcome.equal, outcome


@pytest.mark.parametrize(
    "fault",
    [
        AtCall("biencoder.training.steps.train_step", "sum_gradients", 4),  # the second epoch's first step
        AtCall("biencoder.model.encoder", "chunks", 3),  # the evaluation between the epochs
    ],
)
def test_a_run_killed_in_a_step_or_an_evaluation_ends_in_the_same_bytes(place: Place, fault: AtCall) -> None:
    outcome = place.inject(fault)
    assert (outcome.codes, outcome.from_step) == ([-9], 4 if fault.module.endswith(".train_step") else 3)
    assert outcome.equal, outcome


@pytest.mark.parametrize(
    ("name", "part"), [("create or write", "metrics.jsonl"), ("fsync", ".step-00000006.tmp/state.json")]
)
def test_a_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(place: Place, name: str, part: str) -> None:
    outcome = place.inject(AtOperation(numbers_of(place, name, part)[-1], "full"))
    assert outcome.codes == [2]
    [error] = [line for line in outcome.said.splitlines() if line.startswith("biencoder: error: ")]
    assert "No space left on device. Free some space; then the same command continues from the last checkpoint" in error
    assert "Traceback" not in outcome.said
    assert outcome.equal, outcome


@pytest.mark.parametrize(("name", "how"), [("optimizer.safetensors", "cut"), ("model.safetensors", "one bit flipped")])
def test_a_broken_checkpoint_is_passed_over_for_the_one_before(place: Place, name: str, how: str) -> None:
    outcome = place.inject(Damage(f"{NEWEST}/{name}", how))
    assert f"{NEWEST} is damaged and is skipped: {name}" in outcome.said_then
    assert outcome.from_step == 6
    assert outcome.equal, outcome


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_step_and_says_how_to_go_on(place: Place, number: signal.Signals) -> None:
    outcome = place.inject(AtCall("biencoder.training.steps.train_step", "sum_gradients", 4, number))
    assert (outcome.codes, outcome.from_step) == ([128 + number], 5)
    assert f"biencoder: stopped by {number.name}" in outcome.said
    assert "To continue, run:\n  biencoder train --model " in outcome.said
    assert outcome.equal, outcome


def test_the_second_of_two_runs_in_one_folder_is_refused(place: Place, tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out").claimed():
        codes, _, said = place.run(tmp_path)
    assert codes == [2]
    assert "--output-dir out: another process is training there" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_the_undisturbed_run_says_what_its_files_are(place: Place) -> None:
    folder = place.folder / "whole" / "out"
    files = json.loads((folder / "run.json").read_text())["files"]
    assert {"model.safetensors", "config.json", "eval.json", "README.md", "1_Pooling/config.json"} <= files.keys()
    assert OutputFolder(folder).flaw() is None
