"""What a finished run left in its folder, read again for its report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biencoder.config.yaml_file import YamlFile
from biencoder.errors import UserError
from biencoder.files import read_json
from biencoder.report.curves import Curves, read_curves
from biencoder.report.record import NAME, Record
from biencoder.report.typed import read_typed
from biencoder.retrieval.comparing.comparison import Comparison
from biencoder.retrieval.comparing.second_look import SecondLook
from biencoder.retrieval.evaluate import DECIDING

NEEDED = ("eval.json", "metrics.jsonl", "config.yaml")


@dataclass(frozen=True)
class Evaluated:
    """An evaluation as ``eval.json`` holds it."""

    metrics: dict[str, float]
    queries: int
    documents: int
    description: str


@dataclass(frozen=True)
class Guard:
    """The comparison on a folder of guard data."""

    comparison: list[Comparison]


@dataclass(frozen=True)
class Figures:
    """What ``eval.json`` holds, as far as a report shows it."""

    before: Evaluated
    after: Evaluated
    after_step: int
    comparison: list[Comparison]
    skipped_steps: int = 0
    overflowed_steps: int = 0
    keep_base_tried: list[dict[str, float]] = field(default_factory=list)
    guards: dict[str, Guard] = field(default_factory=dict)
    cross_validation: SecondLook | None = None

    def __post_init__(self) -> None:
        comparisons = [self.comparison, *(guard.comparison for guard in self.guards.values())]
        if self.cross_validation is not None:
            comparisons.append(self.cross_validation.comparison)
        for comparison in comparisons:
            if DECIDING not in {each.measure for each in comparison}:
                raise ValueError(f"comparison should be by {DECIDING} too")


@dataclass(frozen=True, eq=False)
class RunFiles:
    """A finished run.

    Attributes:
        name: of its folder.
        figures: of ``eval.json``.
        curves: of ``metrics.jsonl``.
        settings: of ``config.yaml``: key -> value.
        record: of ``report.json``; None for a run of a version that did not write it.
    """

    name: str
    figures: Figures
    curves: Curves
    settings: dict[str, Any]
    record: Record | None

    @property
    def guards(self) -> dict[str, list[Comparison]]:
        """Folder of guard data -> its comparisons."""
        return {folder: guard.comparison for folder, guard in self.figures.guards.items()}


def read_run(folder: Path) -> RunFiles:
    """Read the files of a run.

    Raises:
        UserError: the folder is not that of a finished run, or a file of it is missing or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; name the --output-dir of a finished run")
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        marker = read_json(folder / "run.json")
        if marker is not None and not marker.get("finished"):
            raise UserError(f"{folder}: the run there is not finished; the same biencoder train command continues it")
        raise UserError(f"{folder}: has no {' and no '.join(missing)}; name the --output-dir of a finished run")
    record = folder / NAME
    return RunFiles(
        name=folder.resolve().name,
        figures=read_typed(Figures, folder / "eval.json"),
        curves=read_curves(folder / "metrics.jsonl"),
        settings=_read_settings(folder / "config.yaml"),
        record=read_typed(Record, record) if record.exists() else None,
    )


def _read_settings(path: Path) -> dict[str, Any]:
    file = YamlFile(path)
    settings = None if file.root is None else file.value(file.root)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not the file that biencoder wrote; it should hold one 'key: value' a line")
    return {str(key): value for key, value in settings.items()}
