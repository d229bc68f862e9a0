"""Trackio: a local database, or a Space on the Hugging Face Hub if ``TRACKIO_SPACE_ID`` names one."""

import os
import uuid
from collections.abc import Sequence
from typing import Any

from biencoder.training.trackers.tracker import Figures, FollowedRun

PROJECT = "biencoder"  # unless TRACKIO_PROJECT names another


class Trackio:
    """A run of Trackio, which knows runs by their names."""

    def __init__(self, run: FollowedRun) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.id = run.id or f"{run.name}-{uuid.uuid4().hex[:6]}"
        self.where = f"trackio show --project {project} (run {self.id})"
        self._run: Any = trackio.init(project=project, name=self.id, config=run.config, resume="allow", embed=False)

    def log(self, lines: Sequence[Figures]) -> None:
        """Add figures."""
        for step, values in lines:
            self._run.log(values, step=step)

    def finish(self, is_complete: bool) -> None:  # noqa: ARG002
        """Write or send the rest."""
        self._run.finish()
