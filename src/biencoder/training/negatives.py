"""Hard negatives that a run mines for itself, with the model as it is (ANCE, Xiong et al. 2021).

They are kept in the output folder, for a resumed run cannot mine them again: its model has learnt more since.

Shapes: n rows, N negatives a row.
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biencoder.config import MiningOptions, TrainConfig
from biencoder.data.data_sets import is_scored
from biencoder.data.table import ExampleTable
from biencoder.errors import UserError
from biencoder.files import atomic_write
from biencoder.retrieval.encode import TextEncoder, progress_line
from biencoder.retrieval.mine import Mined, mine
from biencoder.terminal import say

DEPTH = 100  # passages looked at for each query, at least
DEPTH_TIMES = 10  # as many as are mined


def hard_negatives(
    encoder: TextEncoder, table: ExampleTable, config: TrainConfig, path: Path, *, may_mine: bool
) -> NDArray[np.int64]:
    """Places of each row's mined negatives, see :class:`~biencoder.data.mined_table.MinedTable`.

    Args:
        encoder: the model as it is.
        table: the training rows; a row's negatives are passages of rows of its own data set.
        config: of the run.
        path: where they are kept.
        may_mine: the model is the one whose negatives are wanted.

    Returns:
        int64 ``[n, N]``, -1 where a row has fewer.

    Raises:
        UserError: they should be at ``path`` and are not.
    """
    if path.is_file():
        return _read(path, table, config)
    if not may_mine:
        raise UserError(f"{path}: is gone; the run cannot go on without it. Start it in a new folder")
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
            "What is left out is too near to the row's own positive to be sure that it is no answer. For a model whose "
            "scores lie close together, mine with biencoder mine and a higher --max-share"
        )
    with atomic_write(path, "wb") as file:
        buffer = io.BytesIO()  # of a full disk, numpy says how many items it wrote, and not why
        np.save(buffer, places, allow_pickle=False)
        file.write(buffer.getbuffer())
    return places


def _read(path: Path, table: ExampleTable, config: TrainConfig) -> NDArray[np.int64]:
    try:
        places: NDArray[np.int64] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: is damaged; the run cannot go on without it. Start it in a new folder") from error
    assert places.shape == (len(table), config.mine_negatives)
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
    """Of each candidate, where in ``table`` it stands first: among the positives, or else among the negatives."""
    places = np.full(len(mined.candidates), -1)
    for numbers, at in (
        (mined.candidates.negatives, len(table.positive_hashes.values) + table.negative_hashes.positions(rows)[0]),
        (mined.candidates.positives, table.positive_hashes.positions(rows)[0]),
    ):
        places[numbers[::-1]] = at[::-1]  # the first of equal texts is written last
    return places
