"""What a tracker is given and what it does; each of the files beside this one makes one out of a library."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True)
class FollowedRun:
    """The training run that a tracker shows.

    Attributes:
        name: for people; the output folder's.
        id: by which the tracker knows the run, if an earlier process has shown a part of it there; else None.
        folder: where the tracker may keep files.
        config: the resolved configuration.
    """

    name: str
    id: str | None
    folder: Path
    config: dict[str, Any]


class Figures(NamedTuple):
    """The numbers of one line of ``metrics.jsonl``.

    Attributes:
        step: of the line.
        values: by name.
    """

    step: int
    values: dict[str, float]


class Tracker(Protocol):
    """A run in a tracker, open to take figures. Everything may raise, and may take as long as it likes.

    Attributes:
        id: by which the run can be opened again.
        where: a person finds it, in words; what to type or a link.
    """

    id: str
    where: str

    def log(self, lines: Sequence[Figures]) -> None:
        """Add figures; steps never decrease."""

    def finish(self, is_complete: bool) -> None:
        """Send what is not sent yet; the training run has come to its end, or it was stopped."""


def figures_of(record: dict[str, Any]) -> Figures:
    """The numbers of a line, under the names that they have there; those of an evaluation as ``evaluation/ndcg@10``.

    Figures on guard data stand as ``guards/NAME/ndcg@10``, with an underscore for each slash of a path.

    NaN and infinities, which are words in the file, are numbers again.
    """
    named = {name: value for name, value in record.items() if name not in ("step", "evaluation")}
    if "evaluation" in record:
        named = {f"evaluation/{name}": value for name, value in (record["evaluation"] | named).items()}
    for guard, measures in record.get("guards", {}).items():
        place = guard.strip("./").replace("/", "_")
        named |= {f"guards/{place}/{name}": value for name, value in measures.items()}
    return Figures(record["step"], {name: float(value) for name, value in named.items() if _is_number(value)})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity")
