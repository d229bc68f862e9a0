"""Which rows of a run are similar, as the base model sees their queries.

The answer is kept in the output folder, for a resumed run must cut the very same batches, and its model has learnt.

Shapes: n rows.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biencoder.config import TrainConfig
from biencoder.data.data_sets import is_of_single_texts, is_scored
from biencoder.data.similar_order import similar_order
from biencoder.data.table import ExampleTable
from biencoder.errors import UserError
from biencoder.files import atomic_write
from biencoder.retrieval.encode import TextEncoder, progress_line
from biencoder.retrieval.mapped_vectors import map_vectors
from biencoder.retrieval.queries import Queries, encode_queries

NOT_CLUSTERED = -1
ENCODED_AT_ONCE = 512  # queries


def similar_rows(
    encoder: TextEncoder, table: ExampleTable, config: TrainConfig, path: Path, *, may_encode: bool
) -> NDArray[np.int64]:
    """The place of each row in an order in which rows with similar queries are neighbours.

    Args:
        encoder: the model as it came.
        table: the training rows; the order is one of each data set.
        config: of the run.
        path: where the places are kept.
        may_encode: the model is as it came.

    Returns:
        int64 ``[n]``, -1 for rows of data sets whose rows are no negatives of each other.

    Raises:
        UserError: they should be at ``path`` and are not.
    """
    if path.is_file():
        places: NDArray[np.int64] = np.load(path, allow_pickle=False)
        return places
    if not may_encode:
        raise UserError(f"{path}: is gone; the run cannot go on without it. Start it in a new folder")
    places = np.full(len(table), NOT_CLUSTERED)
    for number, data_set in enumerate(config.data_sets):
        if data_set.in_batch_negatives and not is_scored(table, number) and not is_of_single_texts(table, number):
            rows = np.flatnonzero(table.data_set == number)
            places[rows] = _places(encoder, table.select(rows), config.seed)
    with atomic_write(path, "wb") as file:
        np.save(file, places, allow_pickle=False)
    return places


def _places(encoder: TextEncoder, table: ExampleTable, seed: int) -> NDArray[np.int64]:
    queries = Queries.of(table.query_hashes)
    blocks = [queries.first[start : start + ENCODED_AT_ONCE] for start in range(0, len(queries), ENCODED_AT_ONCE)]
    with progress_line("cluster") as start_progress:
        progress = start_progress(len(queries), 0)

        def encoded(number: int) -> NDArray[np.float32]:
            vectors = encode_queries(encoder, table, blocks[number])
            progress(number * ENCODED_AT_ONCE + len(vectors))
            return vectors

        vectors = map_vectors((encoded(number) for number in range(len(blocks))), encoder.dim)
    place = np.empty(len(queries), np.int64)
    place[similar_order(vectors, seed)] = np.arange(len(queries))
    places = np.empty(len(table), np.int64)
    places[np.argsort(place[queries.number], kind="stable")] = np.arange(len(table))
    return places
