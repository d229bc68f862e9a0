"""The output folder: which run it belongs to, whether that is finished, and where to continue."""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from biencoder.config.choices import NEVER
from biencoder.config.options import flag_name
from biencoder.errors import UserError
from biencoder.files import atomic_write, claim
from biencoder.training.state.checkpoint import checkpoints_in, forget_checkpoints_after, newest_checkpoint
from biencoder.training.state.manifest import flaw_of, record

UNFINISHED = re.compile(r"\..*\.tmp")  # what a kill leaves of a file that was being written

CROSS_VALIDATION = "cross-validation"  # holds runs on parts of the data, until this one is finished

# What a finished run does not need any more, or can make again: its report.
APART = ("checkpoints", "negatives", "batches", "trackers", CROSS_VALIDATION, "report.html")

logger = logging.getLogger(__name__)

# Settings that do not change what a run computes, except whether it stops: a resumed run may bring other values. The
# data are compared by content.
FREE_SETTINGS = {
    "train_data",
    "output_dir",
    "resume",
    "log_to",
    "dry_run",
    "save_steps",
    "keep_checkpoints",
    "memory_budget",
    "shard",
    "shard_offload",
    "device",
    "lora_save",
    "push_to_hub",
    "private",
    "on_nonfinite",
    "max_nonfinite",
}
# What is compared by content, and what to say when it differs.
CONTENT = {
    "data": "the training data have changed",
    "evaluation": "the evaluation data have changed",
    "model": "the base model's weights have changed",
    "guide": "the guide's weights or settings have changed",
}


class OutputFolder:
    """The folder of one training run, known by its ``run.json``.

    Attributes:
        path: the folder.
        marker: ``run.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marker = path / "run.json"

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return checkpoints_in(self.path)

    def refuse_foreign(self, resume: str) -> None:
        """Stop before anything is written into a folder that holds something else.

        Raises:
            UserError: the path is a file, or a folder with other things, or with a run that must not be resumed.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output-dir {self.path}: is a file; name a folder")
        if not self.path.is_dir() or all(UNFINISHED.fullmatch(path.name) for path in self.path.iterdir()):
            return
        if resume == NEVER:
            raise UserError(f"--output-dir {self.path}: is not empty, and --resume is never; name another folder")
        if not self.marker.is_file():
            raise UserError(
                f"--output-dir {self.path}: holds other things ({_some_names(self.path)}) but not a biencoder run; "
                "name a new or empty folder"
            )

    def refuse_unfinished(self) -> None:
        """Stop when there is no finished run to continue.

        Raises:
            UserError: the folder holds none, or one that has not ended yet.
        """
        if not self.marker.is_file():
            raise UserError(
                f"--continue-from {self.path}: is not the --output-dir of a run. To start from any other model, give "
                "--model"
            )
        if not self.finished:
            raise UserError(
                f"--continue-from {self.path}: the run there is not finished; the command that began it finishes it"
            )

    def holds_another_run(self, identity: dict[str, Any]) -> bool:
        """Whether :meth:`refuse_other_run` would refuse the folder."""
        try:
            self.refuse_other_run(identity)
        except UserError:
            return True
        return False

    def refuse_other_run(self, identity: dict[str, Any]) -> None:
        """Stop when the folder's run has another configuration or other data.

        Args:
            identity: of the run that is to go on here: ``config``, ``data_sets`` (their settings), ``world_size`` and
                digests, see :data:`CONTENT`.

        Raises:
            UserError: names every difference. The number of processes is none where they share their negatives.
        """
        if not self.marker.is_file():
            return
        saved = self._read()
        differences = [
            f"{flag_name(name)} was {saved['config'].get(name)!r} and is {value!r}"
            for name, value in identity["config"].items()
            if name not in FREE_SETTINGS and saved["config"].get(name, value) != value  # an option newer than the run
        ]
        changed = [name for name in CONTENT if saved.get(name) != identity.get(name)]
        differences += [CONTENT[name] for name in changed]
        if "data" in changed and saved.get("hub_data"):
            differences.append(f"--train-data held {', '.join(map(str, saved['hub_data']))}")
        if saved.get("data_sets") != identity.get("data_sets"):
            differences.append("the settings of the data sets in --train-data have changed")
        was, now = saved["world_size"], identity["world_size"]
        if was != now and not identity["config"]["negatives_cross_device"]:
            differences.append(
                f"the number of processes was {was} and is {now}, which under --no-negatives-cross-device changes the "
                "negatives of each query"
            )
        if differences:
            raise UserError(
                f"--output-dir {self.path}: holds another run: {'; '.join(differences)}. "
                "To resume that run, give its own settings. To train its model further, name another folder and give "
                f"--continue-from {self.path}. Else name another folder"
            )

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the system lifts the claim when this process ends.

        Raises:
            UserError: another process trains there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        refusal = (
            f"--output-dir {self.path}: another process is training there; wait until it ends, or name another folder"
        )
        try:
            claim(descriptor, self.path, refusal)
            yield
        finally:
            os.close(descriptor)

    def start(self, identity: dict[str, Any], config_yaml: str) -> None:
        """Mark the folder as this run's, and remove the measurements of an attempt that left no checkpoint."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "metrics.jsonl").unlink(missing_ok=True)
        self._write(identity | {"finished": False})
        with atomic_write(self.path / "config.yaml") as file:
            file.write(config_yaml)

    def finish(self, model: Sequence[str]) -> None:
        """Record that the model and its reports are complete, and what their bytes are. This is written last.

        Args:
            model: the names of the files that make the model and its card, which others may see.
        """
        names = [str(path.relative_to(self.path)) for path in self._results()]
        self._write(self._read() | {"finished": True, "files": record(self.path, names), "model_files": list(model)})

    @property
    def model_files(self) -> list[str]:
        """The names that :meth:`finish` was given."""
        return [str(name) for name in self._read().get("model_files", ())]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.marker.is_file() and bool(self._read()["finished"])

    def flaw(self) -> str | None:
        """What has changed since the run ended; None when nothing has."""
        return flaw_of(self.path, self._read().get("files", {}))

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint to continue from; None when there is none."""
        return newest_checkpoint(self.checkpoints) if self.checkpoints.is_dir() else None

    def sweep(self, step: int) -> None:
        """Remove what killed attempts left: unfinished writes, and damaged checkpoints after ``step``."""
        for path in sorted(self.path.rglob(".*.tmp")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        forget_checkpoints_after(self.checkpoints, step)

    def _results(self) -> Iterator[Path]:
        for path in self.path.rglob("*"):
            apart = path.relative_to(self.path).parts[0] in APART
            if path.is_file() and path != self.marker and not apart:
                yield path

    def _read(self) -> dict[str, Any]:
        try:
            saved: Any = json.loads(self.marker.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.marker}: not the file that biencoder wrote ({error})") from error
        if (
            not isinstance(saved, dict)
            or not {"config", "data", "evaluation", "model", "world_size", "finished"} <= saved.keys()
        ):
            raise UserError(f"{self.marker}: not the file that biencoder wrote; name another --output-dir")
        return saved

    def _write(self, content: dict[str, Any]) -> None:
        with atomic_write(self.marker) as file:
            json.dump(content, file, indent=2)
            file.write("\n")


def _some_names(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
