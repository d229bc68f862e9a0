import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hashing_encoder import HashingEncoder

from biencoder.data.files.beir import Collection
from biencoder.retrieval import findings as module
from biencoder.retrieval import search
from biencoder.retrieval.continued import TAIL, expected_ndcg
from biencoder.retrieval.evaluate import Evaluation, evaluate
from biencoder.retrieval.findings import RANKED, Findings

DOCUMENTS, QUERIES = 250, 40


def make_collection() -> Collection:
    """Documents of random words; a query has few words of its first relevant document, and maybe none of the second."""
    random = np.random.default_rng(0)
    words = [[f"w{w}" for w in random.integers(0, 200, 12)] for _ in range(DOCUMENTS)]
    relevant = random.integers(0, DOCUMENTS, (QUERIES, 2))
    return Collection(
        corpus_ids=[f"d{i}" for i in range(DOCUMENTS)],
        corpus_texts=[" ".join(text) for text in words],
        query_ids=[f"q{i}" for i in range(QUERIES)],
        query_texts=[
            " ".join([*words[first][:2], *(f"w{w}" for w in random.integers(0, 200, 4))]) for first, _ in relevant
        ],
        qrels={f"q{i}": {f"d{one}": 2, f"d{other}": 1, "d7": 0} | {} for i, (one, other) in enumerate(relevant)},
        description="made up",
    )


COLLECTION = make_collection()


def found(collection: Collection = COLLECTION, k: int = 100) -> Findings:
    findings = evaluate(HashingEncoder(), collection, k=k, with_findings=True).findings
    assert findings is not None
    return findings


def all_scores() -> np.ndarray:
    encoder = HashingEncoder()
    scores: np.ndarray = (
        encoder.encode_queries(COLLECTION.query_texts) @ encoder.encode_passages(COLLECTION.corpus_texts).T
    )
    return scores


@pytest.mark.parametrize("pairs", [1, 16_384])
def test_scores_are_those_of_the_full_product(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * HashingEncoder().dim * 37)  # blocks of 37 documents
    monkeypatch.setattr(module, "PAIRS", pairs)
    findings = found()
    beyond = 0
    for row, query in zip(all_scores(), COLLECTION.query_ids, strict=True):
        relevant = [COLLECTION.corpus_ids.index(d) for d, grade in COLLECTION.qrels[query].items() if grade > 0]
        best = row[relevant].max()
        beyond += (row > best).sum() >= 100
        assert findings.positive[query] == pytest.approx(best, abs=1e-5)
        wrong = np.sort(np.delete(row, relevant))[::-1]
        assert findings.negative[query] == pytest.approx(wrong[0], abs=1e-5)
        continued = expected_ndcg(float(best), wrong[: TAIL + 1].tolist(), len(wrong))
        assert findings.beyond[query] == pytest.approx(continued, abs=1e-5)
    assert beyond  # some right answer is not even among the documents retrieved


def test_the_first_documents_are_kept_in_their_order() -> None:
    findings = found()
    for row, query in zip(all_scores(), COLLECTION.query_ids, strict=True):
        documents, scores = findings.documents[query], findings.scores[query]
        assert len(documents) == len(scores) == RANKED
        assert scores == pytest.approx(sorted(row.tolist(), reverse=True)[:RANKED], abs=1e-5)
        assert [row[int(document[1:])] for document in documents] == pytest.approx(scores, abs=1e-5)


def test_rankings_are_kept_for_so_many_queries_and_scores_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANKED_QUERIES", 5)
    findings = found()
    assert list(findings.documents) == list(findings.scores) == COLLECTION.query_ids[:5]
    assert list(findings.positive) == COLLECTION.query_ids


def test_a_query_without_any_other_document_has_no_negative() -> None:
    everything = dict.fromkeys(COLLECTION.corpus_ids, 1)
    findings = found(replace(COLLECTION, qrels=COLLECTION.qrels | {"q3": everything}))
    assert "q3" in findings.positive
    assert "q3" not in findings.negative
    assert len(findings.negative) == QUERIES - 1


def test_findings_change_no_figure_and_are_kept_only_if_asked() -> None:
    without, with_findings = evaluate(HashingEncoder(), COLLECTION), found()
    assert without.findings is None
    assert evaluate(HashingEncoder(), COLLECTION, with_findings=True) == replace(without, findings=with_findings)
    assert "findings" not in without.to_json()


def test_they_are_the_same_after_a_stay_in_a_checkpoint() -> None:
    evaluation = evaluate(HashingEncoder(), COLLECTION, with_findings=True)
    assert Evaluation.restored(json.loads(json.dumps(asdict(evaluation)))) == evaluation
    older = asdict(evaluation)
    del older["findings"]
    assert Evaluation.restored(older) == replace(evaluation, findings=None)
