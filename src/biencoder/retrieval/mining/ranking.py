"""The candidates that are most similar to queries: found exactly among some, and by an index among many.

Exact search compares each query with each candidate, so beyond a number it takes longer than encoding them.

Shapes: Q queries, K candidates of each.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from biencoder.config import MiningOptions
from biencoder.config.choices import DENSE, MULTI
from biencoder.data.table import ExampleTable
from biencoder.model.representations.ragged import Vectors
from biencoder.retrieval.approximate.inverted_file import build
from biencoder.retrieval.approximate.tuned_index import sample, tuned
from biencoder.retrieval.mining.filters import Indices, Scores
from biencoder.retrieval.mining.queries import Queries, encode_queries
from biencoder.retrieval.search import resident, search
from biencoder.retrieval.text_encoder import TextEncoder

logger = logging.getLogger(__name__)

BLOCK_BYTES = 256 << 20  # bytes of passage vectors searched at a time; they are mapped, so this costs no memory

Find: TypeAlias = Callable[[Vectors], tuple[Scores, Indices]]


def ranking(
    encoder: TextEncoder, table: ExampleTable, queries: Queries, candidates: Vectors, options: MiningOptions
) -> Find:
    """A function from queries to their ``depth`` most similar candidates: scores and numbers, both ``[Q, K]``.

    Args:
        encoder: the model.
        table: the rows that are mined for.
        queries: its distinct queries, of which some are encoded to measure what an index finds.
        candidates: their vectors.
        options: how many to find, and up to how many candidates the search is exact.
    """
    depth = min(options.depth, len(candidates))
    is_many = len(candidates) > options.exact_up_to
    if is_many and encoder.kind in (DENSE, MULTI):
        asked = encode_queries(encoder, table, queries.first[sample(len(queries))])
        index = tuned(build(candidates), asked, [-1] * len(asked), depth)
        logger.info(
            "more than %s passages (--exact-up-to): an index of %s lists names candidates; a query looks at %s, which "
            "hold %.1f%% of what exact search finds for %s of your queries",
            f"{options.exact_up_to:,}",
            f"{index.inverted_file.lists:,}",
            f"{index.probes:,}",
            100 * index.recall,
            f"{len(asked):,}",
        )
        return partial(index.search, k=depth)
    if is_many:
        logger.info("an index holds vectors, and the model's head is %s, so all passages are searched", encoder.kind)
    block_rows = max(1, BLOCK_BYTES // (4 * encoder.text_size))
    everywhere = resident(candidates, encoder.device)
    return partial(search, corpus=everywhere, k=depth, block_rows=block_rows, device=encoder.device)
