"""Checkpoints: all the state of a run, in safetensors and JSON, written whole or not at all.

A checkpoint is a folder that is written under a temporary name, synced, and renamed. What has its final name is whole.

What a checkpoint does *not* need to hold: states of random number generators. Sampling, dropout and everything else
that is random is seeded from (seed, step, rank), so the number of the step is the state of them all.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from biencoder.files import sync_folder

PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps.

    Attributes:
        step: optimizer steps done.
        weights: of the backbone, by name, those that training changes.
        optimizer: moments and counts, by parameter.
        state: everything else, as JSON: configuration, data, position of the sampler, best evaluation so far.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of ``model`` without what is frozen, which is the base model's and is known by its digest."""
    frozen = _frozen(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def restore_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what :func:`trained_state` gave.

    Raises:
        ValueError: it is not that of this model.
    """
    missing, unexpected = model.load_state_dict(state, strict=False)
    if wrong := sorted({*missing, *unexpected} - _frozen(model)):
        raise ValueError(f"the checkpoint is of another model: {wrong[0]}, one of {len(wrong)}")


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


def checkpoints_in(output_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return output_dir / "checkpoints"


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` below ``folder`` and return its own folder."""
    final = folder / f"{PREFIX}{checkpoint.step:08d}"
    if final.exists():
        return final
    with _staged(final) as temporary:
        _save_tensors(temporary / "model.safetensors", checkpoint.weights)
        _save_tensors(temporary / "optimizer.safetensors", checkpoint.optimizer)
        _save_json(temporary / "state.json", checkpoint.state)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote."""
    return Checkpoint(
        step=_step(path),
        weights=load_file(path / "model.safetensors"),
        optimizer=load_file(path / "optimizer.safetensors"),
        state=read_state(path),
    )


def read_state(path: Path) -> dict[str, Any]:
    """The JSON part of the checkpoint at ``path``."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps; what is left of an interrupted write is no checkpoint."""
    return max(_checkpoints(folder), key=_step, default=None)


def save_best(folder: Path, step: int, weights: dict[str, Tensor]) -> None:
    """Keep the weights of the best evaluation so far."""
    final = best_path(folder, step)
    if not final.exists():
        with _staged(final) as temporary:
            _save_tensors(temporary / "model.safetensors", weights)


def load_best(folder: Path, step: int) -> dict[str, Tensor]:
    """The weights that were kept at ``step``."""
    return load_file(best_path(folder, step) / "model.safetensors")


def best_path(folder: Path, step: int) -> Path:
    """Where the weights kept at ``step`` are."""
    return folder / f"best-{step:08d}"


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, kept weights that none of those refers to, and broken writes."""
    newest = sorted(_checkpoints(folder), key=_step)[-max(1, keep) :]
    needed = {best_path(folder, read_state(path)["best_step"]) for path in newest}
    for path in folder.iterdir():
        if path not in newest and path not in needed:
            shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]


def _step(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


@contextlib.contextmanager
def _staged(final: Path) -> Iterator[Path]:
    """A temporary folder that takes its final name when the block ends well."""
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(temporary)
    temporary.rename(final)
    sync_folder(final.parent)


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    _sync(path)


def _save_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
