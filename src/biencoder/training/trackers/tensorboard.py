"""TensorBoard: event files in the output folder, without a server.

They are written by TensorBoard's own writer. PyTorch's ``SummaryWriter`` is a layer over the same class, and would
import PyTorch into a process that needs nothing else of it.
"""

import time
from collections.abc import Sequence
from typing import Any

from biencoder.training.trackers.tracker import Figures, FollowedRun


class TensorBoard:
    """Event files of a run; a process that resumes it adds one more file."""

    def __init__(self, run: FollowedRun) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = run.folder / "tensorboard"
        self.id, self.where = run.name, f"tensorboard --logdir {folder}"
        self._event, self._summary = Event, Summary
        self._writer: Any = EventFileWriter(str(folder))
        if run.id is None:
            lines = "\n".join(f"    {name}: {value}" for name, value in run.config.items())  # Markdown's code block
            self._writer.add_event(Event(wall_time=time.time(), step=0, summary=text_pb("config", lines)))

    def log(self, lines: Sequence[Figures]) -> None:
        """Add figures and write them out, so that TensorBoard shows them now."""
        for step, values in lines:
            named = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=named))
            self._writer.add_event(event)
        self._writer.flush()

    def finish(self, is_complete: bool) -> None:  # noqa: ARG002
        """Close the file."""
        self._writer.close()
