"""The best texts of a file for some queries, in bounded memory."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from biencoder.config.choices import DENSE, FLOAT32, MULTI
from biencoder.errors import UserError
from biencoder.model.parallel.sharing import first_rank_first
from biencoder.model.representations.ragged import Ragged, Vectors, row_size
from biencoder.retrieval.approximate.stored_index import open_index
from biencoder.retrieval.approximate.tuned_index import TunedIndex
from biencoder.retrieval.encode import description
from biencoder.retrieval.search import BLOCK_BYTES, blocks, candidates, extend, nothing, on, search
from biencoder.retrieval.text_encoder import StartProgress, TextEncoder, finite, shifted
from biencoder.retrieval.texts import Summary, in_batches, read_texts, summarize
from biencoder.retrieval.vectors.small import TYPES, SmallVectors, width
from biencoder.retrieval.vectors.stored import open_vectors
from biencoder.retrieval.vectors.unfinished import TOKENS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hit:
    """A text that was found.

    Attributes:
        id: its ``_id``, or the number of its line.
        text: its title and text.
        score: inner product with the query.
    """

    id: str
    text: str
    score: float


def search_texts(
    encoder: TextEncoder,
    queries: list[str],
    corpus: Path,
    k: int,
    *,
    embeddings: Path | None = None,
    approximate: bool = False,
    progress: StartProgress | None = None,
) -> list[list[Hit]]:
    """The ``k`` best texts of a file for each query, best first; memory holds one block of the corpus at a time.

    Scores are exact. Embeddings that are stored in fewer bytes name candidates, and their texts are encoded now. An
    index names candidates too.

    Args:
        encoder: the model.
        queries: their texts.
        corpus: texts, see :func:`~biencoder.retrieval.texts.read_texts`.
        k: hits per query.
        embeddings: the corpus, encoded by :func:`~biencoder.retrieval.encode.encode_file`; None to encode it now.
        approximate: look at the candidates of an index of the embeddings only.
        progress: as for :func:`~biencoder.retrieval.encode.encode_file`, while the corpus is encoded.

    Raises:
        UserError: bad files, embeddings of another corpus or model, or vectors that are not finite.
    """
    summary = summarize(corpus)
    vectors = finite(encoder.represent_queries(queries), "query")
    small = False
    if embeddings is not None:
        matrix = _open_embeddings(embeddings, corpus, summary, encoder)
        small = isinstance(matrix, SmallVectors)
        if approximate:
            scores, indices = _indexed(embeddings, matrix, encoder.kind).search(vectors, k)
        else:
            scores, indices = search(vectors, matrix, candidates(k) if small else k, device=encoder.device)
    else:
        advance = None if progress is None else progress(summary.rows, 0)
        scores, indices = nothing(len(queries))
        offset = 0
        for batch in in_batches(read_texts(corpus), max(1, BLOCK_BYTES // (4 * encoder.text_size))):
            documents = encoder.represent_passages([row.text for row in batch], shifted(advance, offset))
            finite(documents, f"{corpus}, text", offset)
            scores, indices = extend((scores, indices), vectors, on(encoder.device, documents), offset, k)
            offset += len(batch)
    found_rows = set(indices.ravel().tolist())
    rows = {i: row for i, row in enumerate(read_texts(corpus)) if i in found_rows}
    if small:
        exact = encoder.represent_passages([row.text for row in rows.values()])
        assert isinstance(vectors, np.ndarray)
        assert isinstance(exact, np.ndarray)
        scores, indices = best_by_vectors(vectors, indices, dict(zip(rows, exact, strict=True)), k)
    return [
        [Hit(rows[i].id, rows[i].text, value) for i, value in zip(found, values, strict=True)]
        for found, values in zip(indices.tolist(), scores.tolist(), strict=True)
    ]


def _indexed(embeddings: Path, matrix: "Vectors | SmallVectors", kind: str) -> TunedIndex:
    """The index of some embeddings; says how much it finds."""
    flag, made_from = f"--approximate with --corpus-embeddings {embeddings}", description(embeddings)
    if isinstance(matrix, SmallVectors):
        raise UserError(f"{flag}: these are small vectors, which name candidates already; leave --approximate out")
    if kind not in (DENSE, MULTI):
        raise UserError(f"{flag}: an index holds vectors, and the model's head is {kind}; leave --approximate out")
    if made_from is None:
        raise UserError(f"{flag}: biencoder encode did not write them, so the index could not tell when they change")
    index = first_rank_first(lambda: open_index(embeddings, matrix, made_from))
    logger.info(
        "approximate: %d of %d lists are looked at; they hold %.1f%% of the nearest texts of some of yours",
        index.probes,
        index.inverted_file.lists,
        100 * index.recall,
    )
    return index


def best_by_vectors(
    queries: np.ndarray, candidates: np.ndarray, vectors: Mapping[int, np.ndarray] | np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best ``k`` of each query's candidates by exact scores, and these scores; equal ones by index.

    Args:
        queries: ``[Q, D]``.
        candidates: numbers of documents ``[Q, C]``.
        vectors: of the documents, ``[D]`` by number.
        k: results per query.
    """
    exact = [np.stack([vectors[number] for number in row.tolist()]) for row in candidates]
    scores = np.stack([found @ query for found, query in zip(exact, queries, strict=True)])
    order = np.lexsort((candidates, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(candidates, order, axis=1)


def _open_embeddings(path: Path, corpus: Path, texts: Summary, encoder: TextEncoder) -> "Vectors | SmallVectors":
    """Check the matrix as far as possible and map it: a search in a wrong one would find nonsense without an error."""
    flag = f"--corpus-embeddings {path}"
    made_from = description(path)
    try:
        found = open_vectors(path, like=encoder.no_texts if TOKENS in (made_from or {}) else None)
    except UserError as error:
        raise UserError(f"--corpus-embeddings {error}") from error
    matrix = found.vectors if isinstance(found, Ragged) else found
    kind = (made_from or {}).get("vectors", FLOAT32)
    if matrix.ndim != 2 or matrix.dtype != TYPES.get(kind):
        raise UserError(
            f"{flag}: must hold a float32 matrix, or be what biencoder encode --vectors wrote, with its .json beside"
        )
    dim = made_from["dim"] if made_from and kind != FLOAT32 else matrix.shape[1]
    wanted = row_size(encoder.no_texts)
    if (len(found), dim, matrix.shape[1]) != (texts.rows, wanted, width(kind, wanted)):
        raise UserError(
            f"{flag}: holds vectors of {len(found):,} texts, of {dim} dimensions, but {corpus} has {texts.rows:,} "
            f"texts and the model makes {wanted} dimensions; encode the corpus again"
        )
    if made_from is None:  # biencoder may not have made it, so its values may not be finite
        for start, stop in blocks(*matrix.shape):
            finite(matrix[start:stop], f"{flag}, vector", start)
    else:
        if made_from.get("texts") != texts.fingerprint:
            raise UserError(f"{flag}: was made from texts other than {corpus}; encode the corpus again")
        if made_from.get("model") != encoder.fingerprint:
            raise UserError(
                f"{flag}: was made with another model or other settings (pooling, precision, length); "
                "use the same ones here, or encode the corpus again"
            )
        if kind != FLOAT32 and not isinstance(found, Ragged):
            return SmallVectors(matrix, made_from)
    return found
