"""Clusters of rows whose queries the base model finds similar.

Shapes: n rows.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from biencoder.config import TrainConfig
from biencoder.data.data_sets import is_of_single_texts, is_scored
from biencoder.data.plan.similar_groups import similar_groups
from biencoder.data.table import ExampleTable
from biencoder.device.allocator import give_back
from biencoder.device.choice import facts
from biencoder.model.parallel.sharing import by_turns
from biencoder.model.representations.ragged import one_vector_each
from biencoder.retrieval.approximate.parts import near_parts, recall_within
from biencoder.retrieval.mining.queries import Queries, encode_queries
from biencoder.retrieval.text_encoder import TextEncoder
from biencoder.retrieval.vectors.mapped import map_vectors
from biencoder.terminal import progress_line, say
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.state.saved_array import Places, saved_array

NOT_CLUSTERED = -1
EXACT_UP_TO = 1 << 15  # queries; time grows with the square of those that are compared with each other
ENCODED_AT_ONCE = 512  # queries, on a CPU


def use_clusters(setup: Setup, progress: TrainingProgress) -> None:
    """Make batches of rows with similar queries, which are found now if the run is at its first step.

    Raises:
        UserError: the clusters were made at an earlier step, and their file is missing or damaged.
    """
    config = setup.config
    if config.cluster_size == 1:
        return
    give_back(beyond=0)  # encoding takes other sizes than training, which would lie beside the free ones
    path = setup.folder / "batches" / "places.npy"
    make = partial(similar_rows, setup.encoder, setup.examples, config)
    places = saved_array(path, (len(setup.examples),), make, may_make=progress.step == 0)
    progress.sampler = progress.sampler.clustered(places, config.cluster_size)


def similar_rows(encoder: TextEncoder, table: ExampleTable, config: TrainConfig) -> Places:
    """The place of each row in an order of clusters: rows with similar queries stand together.

    Args:
        encoder: the model as it came.
        table: the training rows; each data set has its own order.
        config: of the run.

    Returns:
        int64 ``[n]``, -1 for rows of data sets without in-batch negatives.
    """
    places = np.full(len(table), NOT_CLUSTERED)
    for number, data_set in enumerate(config.data_sets):
        if data_set.in_batch_negatives and not is_scored(table, number) and not is_of_single_texts(table, number):
            rows = np.flatnonzero(table.data_set == number)
            places[rows] = _places(encoder, table.select(rows), config.cluster_size, config.seed)
    return places


def _places(encoder: TextEncoder, table: ExampleTable, size: int, seed: int) -> Places:
    queries = Queries.of(table.query_hashes)
    at_once = ENCODED_AT_ONCE * facts(encoder.device).bulk
    blocks = [queries.first[start : start + at_once] for start in range(0, len(queries), at_once)]
    with progress_line("cluster") as start_progress:
        progress = start_progress(len(queries), 0)

        def encoded() -> Iterator[NDArray[np.float32]]:
            done = 0
            for found in by_turns(lambda rows: one_vector_each(encode_queries(encoder, table, rows)), blocks):
                yield found
                done += len(found)
                progress(done)

        vectors = map_vectors(encoded(), encoder.dim)
    groups = similar_groups(vectors, np.bincount(queries.number), size, seed, _parts(vectors))
    places = np.empty(len(table), np.int64)
    places[np.argsort(queries.number, kind="stable")] = np.argsort(groups, kind="stable")
    return places


def _parts(vectors: NDArray[np.float32]) -> list[NDArray[np.int64]] | None:
    """Parts of many vectors, within which neighbours are sought; None for one part."""
    if len(vectors) <= EXACT_UP_TO:
        return None
    parts = near_parts(vectors, EXACT_UP_TO)
    say(
        f"clusters: {len(vectors):,} different queries are more than {EXACT_UP_TO:,}, so neighbours are sought within "
        f"{len(parts):,} parts of near queries. These hold {recall_within(vectors, parts):.1%} of the nearest queries "
        "of a sample"
    )
    return parts
