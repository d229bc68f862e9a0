"""``biencoder search``: the best texts of a file for one query or many."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from biencoder.data.blank import is_blank
from biencoder.errors import UserError
from biencoder.files import atomic_write
from biencoder.retrieval.encode import (
    StartProgress,
    TextEncoder,
    description,
    finite,
    load_encoder,
    progress_line,
    shifted,
)
from biencoder.retrieval.evaluate import write_trec_run
from biencoder.retrieval.search import BLOCK_BYTES, blocks, extend, nothing, search
from biencoder.retrieval.texts import Summary, Text, in_batches, read_texts, summarize

if TYPE_CHECKING:
    from biencoder.config import SearchConfig

TREC_SUFFIXES = (".trec", ".run")
SHOWN = 160  # characters of a text in the terminal


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


def run(config: "SearchConfig") -> None:
    """The command: print the hits, or write them to ``--output``."""
    from biencoder.terminal import say, table

    output = config.output
    if output is not None and (output.suffix not in (".jsonl", *TREC_SUFFIXES) or output.is_dir()):
        raise UserError(f"--output {output}: must be a file that ends in .jsonl, or in .trec or .run for a TREC run")
    queries = _queries(config)
    next(read_texts(config.corpus), None)  # a missing file is said before the model is loaded
    encoder = load_encoder(config)
    with progress_line() as progress:
        hits = search_texts(
            encoder,
            [query.text for query in queries],
            config.corpus,
            config.top_k,
            embeddings=config.corpus_embeddings,
            progress=progress,
        )
    if output is not None:
        _write(output, queries, hits, tag=Path(config.model).name)
        say(f"{output}: up to {config.top_k} hits for each of {len(queries):,} queries")
        return
    for query, found in zip(queries, hits, strict=True):
        say(f"query: {query.text}")
        rows = [[str(rank), f"{hit.score:.4f}", hit.id, _shorten(hit.text)] for rank, hit in enumerate(found, 1)]
        table(rows, ["rank", "score", "id", "text"])


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
        k: hits a query.
        embeddings: the corpus as :func:`~biencoder.retrieval.encode.encode_file` encoded it; None to encode it now.
        progress: as for :func:`~biencoder.retrieval.encode.encode_file`, while the corpus is encoded.

    Raises:
        UserError: bad files, embeddings that are not of this corpus and model, or vectors that are not finite.
    """
    summary = summarize(corpus)
    vectors = finite(encoder.encode_queries(queries), "query")
    if embeddings is not None:
        scores, indices = search(vectors, _open_embeddings(embeddings, corpus, summary, encoder), k)
    else:
        advance = None if progress is None else progress(summary.rows, 0)
        scores, indices = nothing(len(queries))
        offset = 0
        for batch in in_batches(read_texts(corpus), max(1, BLOCK_BYTES // (4 * encoder.dim))):
            documents = encoder.encode_passages([row.text for row in batch], shifted(advance, offset))
            finite(documents, f"{corpus}, text", offset)
            scores, indices = extend((scores, indices), vectors, documents, offset, k)
            offset += len(batch)
    wanted = set(indices.ravel().tolist())
    rows = {i: row for i, row in enumerate(read_texts(corpus)) if i in wanted}
    return [
        [Hit(rows[i].id, rows[i].text, value) for i, value in zip(found, values, strict=True)]
        for found, values in zip(indices.tolist(), scores.tolist(), strict=True)
    ]


def _queries(config: "SearchConfig") -> list[Text]:
    if config.queries is None:
        queries, where = [Text("1", config.query or "")], "--query"
    else:
        queries, where = list(read_texts(config.queries)), f"--queries {config.queries}"
    if not queries:
        raise UserError(f"{where}: the file holds no query")
    for query in queries:
        if is_blank(query.text):
            raise UserError(f"{where}: query {query.id} is empty")
    return queries


def _open_embeddings(path: Path, corpus: Path, texts: Summary, encoder: TextEncoder) -> np.ndarray:
    """The matrix, memory-mapped, after all that can be checked: a wrong one finds nonsense without any error."""
    flag = f"--corpus-embeddings {path}"
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{flag}: not a .npy file that can be read ({error})") from error
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype != np.float32:
        raise UserError(f"{flag}: must hold a float32 matrix, as `biencoder encode` writes it")
    if matrix.shape != (texts.rows, encoder.dim):
        rows, dim = matrix.shape
        raise UserError(
            f"{flag}: holds {rows:,} vectors of {dim} dimensions, but {corpus} has {texts.rows:,} texts and the model "
            f"makes {encoder.dim} dimensions; encode the corpus again"
        )
    made_from = description(path)
    if made_from is None:  # not known to be ours, which are finite
        for start, stop in blocks(*matrix.shape):
            finite(matrix[start:stop], f"{flag}, vector", start)
    else:
        if made_from.get("texts") != texts.fingerprint:
            raise UserError(f"{flag}: was made from other texts than {corpus}; encode the corpus again")
        if made_from.get("model") != encoder.fingerprint:
            raise UserError(
                f"{flag}: was made by another model or with other settings (pooling, precision, length); "
                "give the same ones here, or encode the corpus again"
            )
    return matrix


def _write(output: Path, queries: list[Text], hits: list[list[Hit]], tag: str) -> None:
    if output.suffix in TREC_SUFFIXES:
        found = {query.id: {hit.id: hit.score for hit in each} for query, each in zip(queries, hits, strict=True)}
        if len(found) < len(queries) or any(len(found[q.id]) < len(h) for q, h in zip(queries, hits, strict=True)):
            raise UserError(f"--output {output}: queries or texts share an id, which a TREC run cannot hold")
        write_trec_run(output, found, tag=tag)
        return
    with atomic_write(output) as file:
        for query, each in zip(queries, hits, strict=True):
            file.write(json.dumps(_as_json(query, each), ensure_ascii=False) + "\n")


def _as_json(query: Text, hits: list[Hit]) -> dict[str, Any]:
    return {
        "query_id": query.id,
        "query": query.text,
        "hits": [
            {"rank": rank, "id": hit.id, "score": hit.score, "text": hit.text} for rank, hit in enumerate(hits, 1)
        ],
    }


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
