"""Is a question's own passage among the best that a model finds for it?

Shapes: Q questions.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from biencoder.model.representations.ragged import Vectors
from biencoder.retrieval.search import resident, search
from biencoder.retrieval.text_encoder import Advance, TextEncoder, finite, shifted
from biencoder.retrieval.vectors.mapped import map_vectors

BATCH = 4096  # texts encoded at a time, and questions searched at a time

T = TypeVar("T")


def round_trip(
    encoder: TextEncoder,
    passages: Iterable[str],
    questions: Iterable[tuple[str, int]],
    k: int,
    progress: Advance | None = None,
) -> NDArray[np.bool_]:
    """Which questions find their passage in the top ``k`` of all passages, by exact search; bool ``[Q]``.

    This is round-trip consistency (Alberti et al. 2019, https://arxiv.org/abs/1906.05416) with retrieval instead of
    reading, as in Promptagator (Dai et al. 2023, https://arxiv.org/abs/2209.11755). The vectors of the passages are in
    an unnamed file in the temporary folder (``TMPDIR``).

    Args:
        encoder: the model.
        passages: all passages to search.
        questions: each question with the number of its passage, from 0.
        k: a question is kept if its passage is among the first ``k``.
        progress: called with the number of texts encoded.

    Raises:
        UserError: a vector is not finite, or the folder for temporary files is full.
    """

    def encoded() -> Iterator[Vectors]:
        rows = 0
        for texts in _batches(passages):
            yield finite(encoder.represent_passages(texts, shifted(progress, rows)), "passage", rows)
            rows += len(texts)

    corpus = resident(map_vectors(encoded(), encoder.dim), encoder.device)
    found = [np.empty(0, dtype=np.bool_)]
    asked = 0
    for batch in _batches(questions):
        texts, own = [text for text, _ in batch], np.array([number for _, number in batch])
        progress_here = shifted(progress, len(corpus) + asked)
        vectors = finite(encoder.represent_queries(texts, progress_here), "question", asked)
        _, best = search(vectors, corpus, k, device=encoder.device)
        found.append((best == own[:, None]).any(axis=1))
        asked += len(batch)
    return np.concatenate(found)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
