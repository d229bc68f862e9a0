"""A collection of general English that comes with biencoder, to see what a tuned model has forgotten.

A reverse dictionary: the query is a definition, its answer is the words that it defines, with examples. All fields of
life are in it, no model is tuned on it, and it is far from solved. Source: WordNet 3.0 (Fellbaum 1998, "WordNet: An
Electronic Lexical Database"), which may be passed on with its licence, the file beside.
"""

import gzip
from pathlib import Path

import orjson

from biencoder.data.files.beir import Collection

FILE = Path(__file__).with_name("general_english.jsonl.gz")
GENERAL_ENGLISH = "general English (built in)"  # what reports call it
QUERIES = 1000  # the other passages only compete


def general_english() -> Collection:
    """1,000 definitions to find 1,000 of 1,500 entries by."""
    rows = [orjson.loads(line) for line in gzip.decompress(FILE.read_bytes()).splitlines()]
    documents = [f"d{number}" for number in range(len(rows))]
    queries = [f"q{number}" for number in range(QUERIES)]
    return Collection(
        corpus_ids=documents,
        corpus_texts=[row["text"] for row in rows],
        query_ids=queries,
        query_texts=[row["query"] for row in rows[:QUERIES]],
        qrels={query: {document: 1} for query, document in zip(queries, documents, strict=False)},
        description=f"{GENERAL_ENGLISH}: {QUERIES:,} definitions, {len(rows):,} dictionary entries",
    )
