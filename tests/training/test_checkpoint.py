"""Checkpoints: whole or not at all, and bit for bit."""

import json
from pathlib import Path

import pytest
import torch

from biencoder.training import checkpoint
from biencoder.training.checkpoint import (
    Checkpoint,
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
    assert names(path) == ["model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("part", ["_save_tensors", "_save_json"])
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
