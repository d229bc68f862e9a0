"""``biencoder search``: finds the best texts of a file for one query or many."""

import json
from pathlib import Path
from typing import Any

from biencoder.config import SearchConfig
from biencoder.data.text import is_blank
from biencoder.distributed import shares_work
from biencoder.errors import UserError
from biencoder.files import atomic_write
from biencoder.model.encoder import load_encoder
from biencoder.model.parallel.sharing import is_first
from biencoder.retrieval.search_texts import Hit, search_texts
from biencoder.retrieval.texts import Text, read_texts
from biencoder.retrieval.trec import write_trec_run
from biencoder.terminal import progress_line, say, shorten, table

TREC_SUFFIXES = (".trec", ".run")


@shares_work
def run(config: SearchConfig) -> None:
    """The command: print the hits, or write them to ``--output``."""
    output = config.output
    if output is not None and (output.suffix not in (".jsonl", *TREC_SUFFIXES) or output.is_dir()):
        raise UserError(f"--output {output}: must be a file that ends in .jsonl, or in .trec or .run for a TREC run")
    queries = _queries(config)
    next(read_texts(config.corpus), None)  # a missing file is reported before the model is loaded
    encoder = load_encoder(config)
    with progress_line() as progress:
        hits = search_texts(
            encoder,
            [query.text for query in queries],
            config.corpus,
            config.top_k,
            embeddings=config.corpus_embeddings,
            approximate=config.approximate,
            progress=progress,
        )
    if output is not None:
        if is_first():
            _write(output, queries, hits, tag=Path(config.model).name)
        say(f"{output}: up to {config.top_k} hits for each of {len(queries):,} queries")
        return
    for query, found in zip(queries, hits, strict=True):
        say(f"query: {query.text}")
        rows = [[str(rank), f"{hit.score:.4f}", hit.id, shorten(hit.text)] for rank, hit in enumerate(found, 1)]
        table(rows, ["rank", "score", "id", "text"])


def _queries(config: SearchConfig) -> list[Text]:
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


def _write(output: Path, queries: list[Text], hits: list[list[Hit]], tag: str) -> None:
    if output.suffix in TREC_SUFFIXES:
        found = {query.id: {hit.id: hit.score for hit in each} for query, each in zip(queries, hits, strict=True)}
        if len(found) < len(queries) or any(len(found[q.id]) < len(h) for q, h in zip(queries, hits, strict=True)):
            raise UserError(f"--output {output}: some queries or texts share an id, and a TREC run cannot hold that")
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
