"""Checkpoints: whole or not at all, and bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from biencoder.training.state import checkpoint
from biencoder.training.state.checkpoint import (
    Checkpoint,
    forget_checkpoints_after,
    load_best,
    load_checkpoint,
    newest_checkpoint,
    prune,
    read_state,
    save_best,
    save_checkpoint,
)


def make(step: int, best_step: int = 0) -> Checkpoint:
    draw = torch.Generator().manual_seed(step)
    return Checkpoint(
        step=step,
        weights={"a.weight": torch.randn(3, 4, generator=draw), "a.bias": torch.randn(3, generator=draw)},
        optimizer={"a.weight/exp_avg": torch.randn(3, 4, generator=draw), "a.weight/step": torch.tensor(float(step))},
        state={"best_step": best_step, "loss": 0.1 + 0.2, "text": "naïve ✓", "nothing": None},
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    saved = make(12)
    path = save_checkpoint(tmp_path, saved)
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.state) == (12, saved.state)
    assert read_state(path) == saved.state
    for got, want in ((loaded.weights, saved.weights), (loaded.optimizer, saved.optimizer)):
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) and got[name].dtype == want[name].dtype for name in want)
    assert names(path) == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("part", ["save_tensors", "_save_json"])
def test_an_interrupted_write_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    save_checkpoint(tmp_path, make(1))
    with monkeypatch.context() as patched:

        def interrupted(path: Path, _: object) -> None:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

        patched.setattr(checkpoint, part, interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, make(2))
    assert names(tmp_path) == ["step-00000001"]


def test_what_a_kill_left_behind_is_ignored_and_written_anew(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1))
    torn = tmp_path / ".step-00000002.tmp"  # SIGKILL runs no clean-up
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000001"
    save_checkpoint(tmp_path, make(2))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert torch.equal(load_checkpoint(newest).weights["a.bias"], make(2).weights["a.bias"])
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_the_newest_is_the_one_with_the_most_steps(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "absent") is None
    for step in (9, 123456789, 10):
        save_checkpoint(tmp_path, make(step))
    (tmp_path / "step-notes").mkdir()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert load_checkpoint(newest).step == 123456789


FLAWS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes and not the"),
    "flipped": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x00"), "SHA-256 differs"),
    "gone": (lambda path: path.unlink(), "is missing"),
}


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "best"])
def test_a_broken_checkpoint_is_passed_over_and_named_with_its_flaw(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, flaw: str
) -> None:
    damage, said = FLAWS[flaw]
    save_best(tmp_path, 1, make(1).weights)
    save_best(tmp_path, 3, make(3).weights)
    save_checkpoint(tmp_path, make(2, best_step=1))
    save_checkpoint(tmp_path, make(3, best_step=3))
    damage(tmp_path / "best-00000003" / "model.safetensors" if name == "best" else tmp_path / "step-00000003" / name)
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000002"
    [record] = caplog.records
    assert f"{tmp_path / 'step-00000003'} is damaged and is skipped: " in record.getMessage()
    assert said in record.getMessage()
    forget_checkpoints_after(tmp_path, 2)
    save_best(tmp_path, 3, make(3).weights)
    save_checkpoint(tmp_path, make(3, best_step=3))
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000003"
    assert torch.equal(load_best(tmp_path, 3)["a.weight"], make(3).weights["a.weight"])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": {"state.json": 3}}'])
def test_a_broken_manifest_is_a_broken_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    (save_checkpoint(tmp_path, make(1)) / "manifest.json").write_text(content)
    assert newest_checkpoint(tmp_path) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'step-00000001'} is damaged and is skipped: manifest.json is damaged",
        f"no checkpoint in {tmp_path} is intact: the run starts again from the beginning",
    ]
    save_checkpoint(tmp_path, make(1))  # in the place of the broken one
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000001"


def test_pruning_leaves_what_is_not_its_own_and_bears_broken_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make(step))
    (tmp_path / "step-00000002" / "state.json").write_text("{")
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "mine").mkdir()
    prune(tmp_path, keep=2)
    assert names(tmp_path) == ["mine", "notes.txt", "step-00000002", "step-00000003"]


def test_pruning_keeps_the_newest_and_what_they_need(tmp_path: Path) -> None:
    for step in (1, 3):
        save_best(tmp_path, step, make(step).weights)
    save_checkpoint(tmp_path, make(1, best_step=1))
    save_checkpoint(tmp_path, make(2, best_step=1))
    save_checkpoint(tmp_path, make(3, best_step=3))
    (tmp_path / ".step-00000004.tmp").mkdir()
    prune(tmp_path, keep=2)
    assert names(tmp_path) == ["best-00000001", "best-00000003", "step-00000002", "step-00000003"]
    prune(tmp_path, keep=1)
    assert names(tmp_path) == ["best-00000003", "step-00000003"]
    assert torch.equal(load_best(tmp_path, 3)["a.weight"], make(3).weights["a.weight"])


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make(1))
    json.loads((path / "state.json").read_text(encoding="utf-8"))
    for file in path.glob("*.safetensors"):
        length = int.from_bytes(file.read_bytes()[:8], "little")
        json.loads(file.read_bytes()[8 : 8 + length])
