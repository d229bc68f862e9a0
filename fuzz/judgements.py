"""Judgements of an evaluation folder, BEIR's three columns or TREC's four. ``python -m fuzz.judgements``."""

import atheris

with atheris.instrument_imports(include=["biencoder"]):
    from biencoder.data.files.beir import load_collection
    from biencoder.errors import UserError
    from biencoder.retrieval.metrics import evaluate_run

from fuzz.driver import Place, fuzz, require

PLACE = Place("beir/qrels/test.tsv")
IDS = 20
for name, letter in (("corpus", "d"), ("queries", "q")):
    rows = "".join(f'{{"_id": "{letter}{i}", "text": "text {i}"}}\n' for i in range(IDS))
    (PLACE.path.parents[1] / f"{name}.jsonl").write_text(rows)


def target(data: bytes) -> None:
    """Whatever is accepted has ids of the collection and grades that can be summed."""
    path = PLACE.write(data)
    try:
        collection = load_collection(path.parents[1])
    except UserError as error:
        require("test.tsv" in str(error), f"a message without the file: {error}")
        return
    known, queries = set(collection.corpus_ids), set(collection.query_ids)
    require(set(collection.qrels) == queries, "judged queries are not those that are searched for")
    for grades in collection.qrels.values():
        require(set(grades) <= known, "a document that is not in the corpus")
    evaluate_run(collection.qrels, {query: dict.fromkeys(collection.corpus_ids, 0.5) for query in queries})
    require(len(collection.fingerprint) == 32, "no fingerprint")


SEEDS = [
    b"query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t0\nq0\td3\t2\n",
    b"q0 0 d0 1\nq1 0 d2 -1\r\nq19 Q0 d19 3\n",
    b"\xef\xbb\xbfq0\td0\t1\n\nq0\td0\t1\n",
    b"q0\td0\t1\nq0\td0\t2\n",
    b"q0\tunknown\t1\n",
]

if __name__ == "__main__":
    fuzz(target, SEEDS)
