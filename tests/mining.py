"""`biencoder mine` as tests of several kinds of models use it."""

import json
from pathlib import Path
from typing import Any

from biencoder.commands.data import mine as command
from biencoder.config import MineConfig


def mined_rows(model: Path, corpus: Path, folder: Path) -> list[dict[str, Any]]:
    """The rows of ``folder / "in.jsonl"`` with two negatives each, which ``folder / "mined.jsonl"`` holds too."""
    output = folder / "mined.jsonl"
    command.run(
        MineConfig(
            model=str(model),
            train_data=(folder / "in.jsonl",),
            output=output,
            negatives=2,
            corpus=corpus,
            max_share=1.0,
        )
    )
    return [json.loads(line) for line in output.read_text().splitlines()]
