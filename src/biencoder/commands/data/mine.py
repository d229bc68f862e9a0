"""``biencoder mine``: adds hard negatives to training files."""

import numpy as np

from biencoder.config import MineConfig
from biencoder.distributed import shares_work
from biencoder.retrieval.mining.mine import Mined
from biencoder.retrieval.mining.mine_files import mine_hard_negatives
from biencoder.terminal import progress_line, say, shorten, table

EXAMPLES = 3
SHOWN = 200  # characters of a text in the terminal


@shares_work
def run(config: MineConfig) -> None:
    """The command: mine, write the rows, say what each stage removed."""
    with progress_line("mine") as progress:
        mined = mine_hard_negatives(config, progress=progress)
    _report(mined, config.negatives)
    say(f"\n{config.output}: {len(mined.table):,} rows with {int(mined.counts.sum()):,} mined negatives")


def _report(mined: Mined, wanted: int) -> None:
    rows, skipped = len(mined.table), sum(mined.table.skipped.values())
    candidates = mined.candidates
    say(
        f"{rows:,} rows{f' ({skipped:,} bad ones left out)' if skipped else ''}, {candidates.searchable:,} candidates: "
        f"the distinct passages among {candidates.source_rows:,}"
    )
    if mined.absent_positives:
        say(f"{mined.absent_positives:,} distinct positives are not in the corpus")
    if mined.existing_scores is not None and mined.contradicted.any():
        say(
            f"{int(mined.contradicted.sum()):,} of the rows' own negatives are left out, because they are "
            "positives of the same query"
        )
    stages = [("found by the search", "", f"{mined.searched:,}")]
    stages += [(stage, f"{removed:,}", f"{left:,}") for stage, removed, left in mined.stages]
    table(stages, ["stage", "removed", "left"])
    short = int((mined.counts < wanted).sum())
    say(f"{short:,} rows ({short / rows:.1%}) got fewer than {wanted} negatives")
    for row in _spread(np.flatnonzero(mined.counts)):
        example = mined.table[row]
        text, score = mined.mined(row)[0]
        positive = float(mined.positive_scores[mined.table.positive_hashes.offsets[row]])
        say(f"\nquery            {shorten(example.query, SHOWN)}")
        say(f"positive  {positive:.4f} {shorten(example.positives[0], SHOWN)}")
        say(f"negative  {score:.4f} {shorten(text, SHOWN)}")


def _spread(rows: np.ndarray) -> list[int]:
    """A few of the rows, evenly spread over the data."""
    count = min(EXAMPLES, len(rows))
    return [int(rows[place]) for place in np.linspace(0, len(rows) - 1, count).astype(int)]
