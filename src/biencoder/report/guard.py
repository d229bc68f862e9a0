"""What a model lost or gained on data that it was not trained on."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biencoder.config import TrainConfig
from biencoder.retrieval.comparing.comparison import (
    COMPARISON_COLUMNS,
    SIGNIFICANT,
    Comparison,
    comparison_json,
    comparison_rows,
    deciding_of,
)
from biencoder.retrieval.evaluate import DECIDING, Evaluation

GUARD_COLUMNS = ["guard data", *COMPARISON_COLUMNS]
Guards = Mapping[str, list[Comparison]]  # folder -> its comparisons


def guard_rows(guards: Guards) -> list[list[str]]:
    """One row per folder, for the deciding measure, under :data:`GUARD_COLUMNS`."""
    return [[folder, *comparison_rows([deciding_of(found)])[0]] for folder, found in guards.items()]


def guard_verdicts(guards: Guards) -> list[str]:
    """One sentence per folder: whether the model lost or gained there, or that the data cannot tell."""
    sentences = []
    for folder, found in guards.items():
        deciding = deciding_of(found)
        change = f"{deciding.difference:+.4f} {DECIDING} (p = {deciding.p:.4f})"
        if deciding.p >= SIGNIFICANT:
            sentences.append(f"On {folder}: no significant change, {change}.")
        elif deciding.difference < 0:
            sentences.append(f"On {folder} the tuned model has LOST some of what its base knew: {change}.")
        else:
            sentences.append(f"On {folder} the tuned model has improved: {change}.")
    return sentences


def next_step(guards: Guards, config: TrainConfig, kept: float) -> str:
    """What to do about a significant loss, with the commands; empty if there is none.

    Args:
        guards: what was lost or gained.
        config: of the run.
        kept: share of the base in the saved model.
    """
    losses = [each for each in map(deciding_of, guards.values()) if each.p < SIGNIFICANT and each.difference < 0]
    if not losses:
        return ""
    more = round((1 + kept) / 2, 2)
    base, tuned, merged = (
        shlex.quote(str(path)) for path in (config.model, config.output_dir, _beside(config.output_dir))
    )
    return (
        f"To keep more of the base, train with --keep-base {more:g} into another folder, or average the two now:\n\n"
        f"  biencoder merge {base} {tuned} --output-dir {merged}"
    )


def guard_json(
    guards: Guards, before: Mapping[str, Evaluation], after: Mapping[str, Evaluation]
) -> dict[str, dict[str, Any]]:
    """What ``eval.json`` holds about each folder."""
    return {
        folder: {
            "before": before[folder].to_json(),
            "after": after[folder].to_json(),
            "comparison": comparison_json(comparisons),
        }
        for folder, comparisons in guards.items()
    }


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-merged")
