"""Hard negatives that a run mines with its own model (ANCE, Xiong et al. 2021).

Shapes: n rows, N negatives a row.
"""

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from biencoder.config import MiningOptions, TrainConfig
from biencoder.data.data_sets import is_scored
from biencoder.data.mined_table import with_negatives
from biencoder.data.table import ExampleTable
from biencoder.device.allocator import give_back
from biencoder.retrieval.mining.mine import Mined, mine
from biencoder.retrieval.text_encoder import TextEncoder
from biencoder.terminal import progress_line, say
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.state.saved_array import Places, array_for_all

DEPTH = 100  # fewest passages looked at for each query
DEPTH_TIMES = 10  # passages looked at for each negative that is mined


def use_hard_negatives(setup: Setup, progress: TrainingProgress) -> int:
    """Bring in the negatives to train on from here, mined now if they are due; return until which step they hold.

    Raises:
        UserError: the negatives were mined at an earlier step, and their file is missing or damaged.
    """
    config = setup.config
    if not config.mine_negatives:
        return setup.total_steps
    refresh = config.refresh_negatives
    every = setup.total_steps if refresh is None else refresh * progress.sampler.steps_per_epoch
    mined_at = progress.step - progress.step % every
    give_back(beyond=0)  # encoding takes other sizes than training, which would lie beside the free ones
    path = setup.folder / "negatives" / f"step-{mined_at:08d}.npy"
    make = partial(mine_places, setup.encoder, setup.examples, config)
    shape = (len(setup.examples), config.mine_negatives)
    may_make, together = progress.step == mined_at, setup.is_sharded
    table = with_negatives(setup.examples, array_for_all(path, shape, make, may_make=may_make, together=together))
    progress.sampler, progress.batcher = progress.sampler.over(table), replace(progress.batcher, table=table)
    return min(setup.total_steps, mined_at + every)


def mine_places(encoder: TextEncoder, table: ExampleTable, config: TrainConfig) -> Places:
    """Places of each row's mined negatives, see :func:`~biencoder.data.mined_table.with_negatives`.

    Args:
        encoder: the model as it is.
        table: the training rows; a row's negatives are passages of rows of its own data set.
        config: of the run.

    Returns:
        int64 ``[n, N]``, -1 where a row has fewer.
    """
    places = np.full((len(table), config.mine_negatives), -1)
    for number, data_set in enumerate(config.data_sets):
        if data_set.in_batch_negatives and not is_scored(table, number):
            rows = np.flatnonzero(table.data_set == number)
            places[rows] = _mined(encoder, table, rows, config)
    found = (places >= 0).sum(axis=1)
    with_some = int((found > 0).sum())
    say(f"mined {int(found.sum()):,} hard negatives for {with_some:,} of {len(table):,} rows")
    if with_some < len(table) / 2:
        say(
            "The other candidates score so close to the row's positive that they may be answers. If your model's "
            "scores lie close together, mine with biencoder mine and a higher --max-share"
        )
    return places


def _mined(
    encoder: TextEncoder, table: ExampleTable, rows: NDArray[np.int64], config: TrainConfig
) -> NDArray[np.int64]:
    wanted = config.mine_negatives
    options = MiningOptions(negatives=wanted, depth=max(DEPTH, DEPTH_TIMES * wanted), seed=config.seed)
    with progress_line("mine") as progress:
        mined = mine(encoder, table.select(rows), options, progress=progress)
    places = _places(mined, table, rows)
    return np.where(mined.indices >= 0, places[mined.indices], -1)


def _places(mined: Mined, table: ExampleTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each candidate stands first in ``table``: among the positives, or else among the negatives."""
    places = np.full(len(mined.candidates), -1)
    for numbers, at in (
        (mined.candidates.negatives, len(table.positive_hashes.values) + table.negative_hashes.positions(rows)[0]),
        (mined.candidates.positives, table.positive_hashes.positions(rows)[0]),
    ):
        places[numbers[::-1]] = at[::-1]  # the first of equal texts is written last
    return places
