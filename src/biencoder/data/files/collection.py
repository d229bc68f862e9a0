"""An evaluation collection: documents, queries and which document answers which query."""

from dataclasses import dataclass

import orjson
import xxhash

Qrels = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Collection:
    """What an evaluation needs.

    Attributes:
        corpus_ids: the documents' ids, each once.
        corpus_texts: their texts in the same order; with a title, ``title text``, joined by a space.
        query_ids: the ids of the queries that have judgements, each once.
        query_texts: their texts in the same order.
        qrels: query id -> document id -> grade; above 0 is relevant. All these ids are in the lists above.
        description: one line for the reader of the results.
        ignores_itself: a document with the id of the query counts as not found. Some collections take their queries
            from the corpus.
    """

    corpus_ids: list[str]
    corpus_texts: list[str]
    query_ids: list[str]
    query_texts: list[str]
    qrels: Qrels
    description: str
    ignores_itself: bool = False

    @property
    def fingerprint(self) -> str:
        """32 hex digits over texts, ids and judgements in their order; file names and compression do not matter."""
        digest = xxhash.xxh3_128()
        for part in (self.corpus_ids, self.corpus_texts, self.query_ids, self.query_texts):
            for text in part:
                encoded = text.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        digest.update(orjson.dumps(list(self.qrels.values())))
        if self.ignores_itself:
            digest.update(b"ignores itself")
        return digest.hexdigest()
