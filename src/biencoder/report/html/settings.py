"""The settings of runs, as a report lists them."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from biencoder.config import TrainConfig
from biencoder.config.options import key_name

PLACES = ("output-dir", "config")  # always differ between runs, and say nothing of how they trained


@dataclass(frozen=True)
class Settings:
    """The settings of a run, name and value.

    Attributes:
        chosen: those that somebody chose, or that the run found for the model.
        usual: those that are as they are if nobody says anything.
    """

    chosen: list[tuple[str, str]]
    usual: list[tuple[str, str]]


def of_run(settings: Mapping[str, Any]) -> Settings:
    """The settings of one run, in their order."""
    defaults = {
        key_name(field.name): _plain(field.default)
        for field in dataclasses.fields(TrainConfig)
        if field.default is not dataclasses.MISSING
    }
    missing = object()
    found = Settings([], [])
    for name, value in settings.items():
        (found.usual if defaults.get(name, missing) == value else found.chosen).append((name, said(value)))
    return found


def differing(settings: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each setting that is not the same in all runs: its name and its value in each run."""
    names = dict.fromkeys(name for each in settings for name in each if name not in PLACES)
    rows = [[name, *(said(each[name]) if name in each else "" for each in settings)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def said(value: object) -> str:
    """A value for people."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, list) and all(isinstance(each, str | int | float) for each in value):
        return ", ".join(map(str, value))
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _plain(default: object) -> object:
    return list(default) if isinstance(default, tuple) else default
