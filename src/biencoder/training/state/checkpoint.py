"""Checkpoints: all the state of a run, in safetensors and JSON, written whole or not at all.

A checkpoint is a folder. It is written under a temporary name, its manifest last, then synced and renamed. So a folder
with its final name is whole. If a disk loses a part of it later, the manifest shows that, and the run continues from an
older checkpoint.

Tensors are whole in it, however many ranks wrote them: where weights are sharded, all ranks call the functions that
write, and each writes its rows. Otherwise rank 0 calls them alone.

A checkpoint does *not* hold states of random number generators. Sampling, dropout and everything else that is random is
a function of seed and step, so the number of the step is the state of them all. No rank has a state of its own, so
another number of ranks may go on.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from biencoder.distributed import rank
from biencoder.files import sync_file, sync_folder
from biencoder.model.parallel.sharded import cut_like
from biencoder.training.state.manifest import flaw, write_manifest
from biencoder.training.state.tensor_file import for_all, save_tensors

PREFIX, BEST = "step-", "best-"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps.

    Attributes:
        step: optimizer steps done.
        weights: of backbone and head, by name; only those that training changes.
        optimizer: moments and counts, by parameter.
        state: everything else, as JSON: configuration, data, position of the sampler, best evaluation so far.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of ``model`` without frozen weights, which are the base model's and are known by their digest."""
    frozen = _frozen(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def restore_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what :func:`trained_state` gave.

    Raises:
        ValueError: it is the state of another model.
    """
    own_state = model.state_dict()
    state = {name: cut_like(whole, own_state[name]) if name in own_state else whole for name, whole in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if wrong := sorted({*missing, *unexpected} - _frozen(model)):
        raise ValueError(f"the checkpoint is of another model: {wrong[0]}, one of {len(wrong)}")


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


def checkpoints_in(output_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return output_dir / "checkpoints"


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` is."""
    return folder / f"{PREFIX}{step:08d}"


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` below ``folder`` and return its own folder."""
    final = checkpoint_path(folder, checkpoint.step)
    if for_all(checkpoint.weights, lambda: flaw(final) is None):
        return final
    with _staged(final) as temporary:
        save_tensors(temporary / "model.safetensors", checkpoint.weights)
        save_tensors(temporary / "optimizer.safetensors", checkpoint.optimizer)
        if rank() == 0:
            _save_json(temporary / "state.json", checkpoint.state)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote."""
    return Checkpoint(
        step=step_of(path),
        weights=load_file(path / "model.safetensors"),
        optimizer=load_file(path / "optimizer.safetensors"),
        state=read_state(path),
    )


def read_state(path: Path) -> dict[str, Any]:
    """The JSON part of the checkpoint at ``path``."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written; the log names every newer one and what is wrong with it.

    What an interrupted write leaves is not a checkpoint.
    """
    checkpoints = sorted(_checkpoints(folder), key=step_of, reverse=True)
    for path in checkpoints:
        wrong = _flaw(path)
        if wrong is None:
            return path
        logger.warning("%s is damaged and is skipped: %s", path, wrong)
    if checkpoints:
        logger.warning("no checkpoint in %s is intact: the run starts again from the beginning", folder)
    return None


def _flaw(path: Path) -> str | None:
    """What is wrong with a checkpoint, or with the best weights that belong to it."""
    wrong = flaw(path)
    best = 0 if wrong else read_state(path)["best_step"]
    if best and (lost := flaw(best_path(path.parent, best))):
        wrong = f"{best_path(path.parent, best).name}, its best weights: {lost}"
    return wrong


def forget_checkpoints_after(folder: Path, step: int) -> None:
    """Remove checkpoints of steps that a resumed run takes again: the damaged ones that were skipped."""
    for path in _checkpoints(folder):
        if step_of(path) > step:
            shutil.rmtree(path)


def save_best(folder: Path, step: int, weights: dict[str, Tensor]) -> None:
    """Keep the weights of the best evaluation so far."""
    final = best_path(folder, step)
    if for_all(weights, lambda: flaw(final) is not None):
        with _staged(final) as temporary:
            save_tensors(temporary / "model.safetensors", weights)


def load_best(folder: Path, step: int) -> dict[str, Tensor]:
    """The weights that were kept at ``step``."""
    return load_file(best_path(folder, step) / "model.safetensors")


def best_path(folder: Path, step: int) -> Path:
    """Where the weights kept at ``step`` are."""
    return folder / f"{BEST}{step:08d}"


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, kept weights that none of those refers to, and broken writes."""
    newest = sorted(_checkpoints(folder), key=step_of)[-max(1, keep) :]
    needed = {best_path(folder, _best_step(path)) for path in newest}
    for path in folder.iterdir():
        ours = path.name.lstrip(".").startswith((PREFIX, BEST)) and path.is_dir()
        if ours and path not in newest and path not in needed:
            shutil.rmtree(path)


def _best_step(path: Path) -> int:
    """The best step that a checkpoint refers to; 0 for a damaged older one, which needs nothing."""
    try:
        return int(read_state(path)["best_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]


def step_of(path: Path) -> int:
    """The number of steps that a checkpoint's name says."""
    return int(path.name.removeprefix(PREFIX))


@contextlib.contextmanager
def _staged(final: Path) -> Iterator[Path]:
    """A temporary folder that takes its final name when the block ends well, and replaces a damaged one.

    Rank 0 makes and renames it.
    """
    if rank() != 0:
        yield _temporary(final)
        return
    if not final.parent.is_dir():
        final.parent.mkdir(parents=True)
        sync_folder(final.parent.parent)
    temporary = _temporary(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        write_manifest(temporary)
        sync_folder(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    sync_folder(final.parent)


def _temporary(final: Path) -> Path:
    return final.with_name(f".{final.name}.tmp")


def _save_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")  # indented, thousands of queries would take a second
    sync_file(path)
