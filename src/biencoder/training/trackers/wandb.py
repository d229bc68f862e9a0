"""Weights & Biases. Without its server or an account the figures stay here, where ``wandb sync`` finds them."""

import os
import uuid
from collections.abc import Sequence
from typing import Any

from biencoder.training.trackers.tracker import Figures, FollowedRun

PROJECT = "biencoder"  # unless WANDB_PROJECT names another
SECONDS = 30  # to reach the server at the start


class Wandb:
    """A run of Weights & Biases. It ignores steps that it has seen, so those that are taken again count once."""

    def __init__(self, run: FollowedRun) -> None:
        import wandb

        self.id = run.id or uuid.uuid4().hex[:12]
        wanted: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "name": os.environ.get("WANDB_NAME", run.name),
            "id": self.id,
            "resume": "allow",
            "config": run.config,
            "dir": os.environ.get("WANDB_DIR", str(run.folder)),
            "settings": wandb.Settings(init_timeout=SECONDS),
        }
        why = ""
        try:
            self._run: Any = wandb.init(**wanted)
        except wandb.Error as error:
            why = f"its server does not take the run ({str(error).splitlines()[0]}); "
            wandb.teardown()  # or the attempt would still hold the run's id
            self._run = wandb.init(**wanted, mode="offline")
        local = f"{why}send the figures later with: wandb sync {self._run.settings.sync_dir}"
        self.where = self._run.url or local

    def log(self, lines: Sequence[Figures]) -> None:
        """Add figures; the library sends them when it can."""
        for step, values in lines:
            self._run.log(values, step=step)

    def finish(self, is_complete: bool) -> None:
        """Send the rest."""
        self._run.finish(exit_code=0 if is_complete else 1)
