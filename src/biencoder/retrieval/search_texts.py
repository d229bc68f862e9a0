"""The best texts of a file for some queries, in bounded memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from biencoder.errors import UserError
from biencoder.retrieval.encode import description
from biencoder.retrieval.search import BLOCK_BYTES, blocks, extend, nothing, on, search
from biencoder.retrieval.text_encoder import StartProgress, TextEncoder, finite, shifted
from biencoder.retrieval.texts import Summary, in_batches, read_texts, summarize


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
    progress: StartProgress | None = None,
) -> list[list[Hit]]:
    """The ``k`` best texts of a file for each query, best first; memory holds one block of the corpus at a time.

    Args:
        encoder: the model.
        queries: their texts.
        corpus: texts, see :func:`~biencoder.retrieval.texts.read_texts`.
        k: hits per query.
        embeddings: the corpus, encoded by :func:`~biencoder.retrieval.encode.encode_file`; None to encode it now.
        progress: as for :func:`~biencoder.retrieval.encode.encode_file`, while the corpus is encoded.

    Raises:
        UserError: bad files, embeddings of another corpus or model, or vectors that are not finite.
    """
    summary = summarize(corpus)
    vectors = finite(encoder.encode_queries(queries), "query")
    if embeddings is not None:
        matrix = _open_embeddings(embeddings, corpus, summary, encoder)
        scores, indices = search(vectors, matrix, k, device=encoder.device)
    else:
        advance = None if progress is None else progress(summary.rows, 0)
        scores, indices = nothing(len(queries))
        offset = 0
        for batch in in_batches(read_texts(corpus), max(1, BLOCK_BYTES // (4 * encoder.dim))):
            documents = encoder.encode_passages([row.text for row in batch], shifted(advance, offset))
            finite(documents, f"{corpus}, text", offset)
            scores, indices = extend((scores, indices), vectors, on(encoder.device, documents), offset, k)
            offset += len(batch)
    wanted = set(indices.ravel().tolist())
    rows = {i: row for i, row in enumerate(read_texts(corpus)) if i in wanted}
    return [
        [Hit(rows[i].id, rows[i].text, value) for i, value in zip(found, values, strict=True)]
        for found, values in zip(indices.tolist(), scores.tolist(), strict=True)
    ]


def _open_embeddings(path: Path, corpus: Path, texts: Summary, encoder: TextEncoder) -> np.ndarray:
    """Check the matrix as far as possible and map it: a search in a wrong one would find nonsense without an error."""
    flag = f"--corpus-embeddings {path}"
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{flag}: cannot be read as a .npy file ({error})") from error
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype != np.float32:
        raise UserError(f"{flag}: must hold a float32 matrix, like the ones that biencoder encode writes")
    if matrix.shape != (texts.rows, encoder.dim):
        rows, dim = matrix.shape
        raise UserError(
            f"{flag}: holds {rows:,} vectors of {dim} dimensions, but {corpus} has {texts.rows:,} texts and the model "
            f"makes {encoder.dim} dimensions; encode the corpus again"
        )
    made_from = description(path)
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
    return matrix
