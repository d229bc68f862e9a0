import math
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hashing_encoder import HashingEncoder

from biencoder.retrieval.metrics import MEASURES, evaluate_run, ranking
from biencoder.retrieval.search import search

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]

TREC_NAMES = {
    "ndcg@10": "ndcg_cut_10",
    "mrr@10": "recip_rank",  # trec_eval does not cut it: see `reference`
    "recall@1": "recall_1",
    "recall@5": "recall_5",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
    "map@100": "map_cut_100",
}
IR_NAMES = {
    "ndcg@10": "nDCG@10",
    "mrr@10": "RR@10",
    "recall@1": "R@1",
    "recall@5": "R@5",
    "recall@10": "R@10",
    "recall@100": "R@100",
    "map@100": "AP@100",
}


def random_collection(seed: int, *, queries: int = 40, documents: int = 300) -> tuple[Qrels, Run]:
    """Graded judgements and a run with ties, unjudged and unretrieved documents, queries missing on either side."""
    random = np.random.default_rng(seed)
    names = [f"d{i}" if i % 3 else f"文{i}é" for i in range(documents)]
    qrels: Qrels = {}
    run: Run = {}
    for q in range(queries):
        if q == 1 or (q and random.random() < 0.9):
            judged = random.choice(documents, size=random.integers(1, 60), replace=False)
            qrels[f"q{q}"] = {names[d]: int(random.choice([0, 0, 1, 1, 2, 3])) for d in judged}
        if q != 1 and random.random() < 0.9:
            found = random.choice(documents, size=random.integers(1, 200), replace=False)
            scores = random.normal(size=len(found)) if q % 2 else random.integers(-3, 4, size=len(found)) / 2
            scores = scores + (random.random(len(found)) * 1e-9 if q % 4 == 0 else 0)  # below float32: still ties
            run[f"q{q}"] = dict(zip([names[d] for d in found], scores.tolist(), strict=True))
    return qrels, run


def reference(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """Values per query by pytrec_eval."""
    relevant = {query for query, judged in qrels.items() if any(r > 0 for r in judged.values())}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, set(TREC_NAMES.values()))
    results: Any = evaluator.evaluate({query: scores for query, scores in run.items() if query in qrels})
    values: dict[str, dict[str, float]] = {
        name: {query: results[query][trec] if query in results else 0.0 for query in relevant}
        for name, trec in TREC_NAMES.items()
    }
    values["mrr@10"] = {query: value if value > 0.0999 else 0.0 for query, value in values["mrr@10"].items()}
    return values


def assert_agrees(qrels: Qrels, run: Run) -> None:
    scores, expected = evaluate_run(qrels, run), reference(qrels, run)
    assert set(expected) == set(MEASURES) == set(scores.per_query)
    for name, values in scores.per_query.items():
        assert dict(zip(scores.query_ids, values, strict=True)) == pytest.approx(expected[name], abs=1e-9), name


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_trec_eval_on_random_runs(seed: int) -> None:
    qrels, run = random_collection(seed)
    assert set(run) - set(qrels)
    assert set(qrels) - set(run)
    assert_agrees(qrels, run)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [True, False])
def test_means_agree_with_ir_measures(seed: int, ties: bool) -> None:
    qrels, run = random_collection(seed)
    qrels = {query: judged for query, judged in qrels.items() if max(judged.values()) > 0}
    names = dict(IR_NAMES)
    if ties:
        del names["mrr@10"]  # its RR@10 breaks ties the other way round than trec_eval
    else:
        run = {query: {document: float(rank) for rank, document in enumerate(scores)} for query, scores in run.items()}
    measures = {name: ir_measures.parse_measure(ir) for name, ir in names.items()}
    expected = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    means = evaluate_run(qrels, run, tuple(names)).means
    assert means == pytest.approx({name: expected[m] for name, m in measures.items()}, abs=1e-9)


def test_agrees_with_trec_eval_on_a_real_run(medquad: Path) -> None:
    from biencoder.data.files.beir import load_collection

    collection = load_collection(medquad / "dev-small", None)
    encoder = HashingEncoder(dim=256)
    scores, indices = search(
        encoder.encode_queries(collection.query_texts), encoder.encode_passages(collection.corpus_texts), 100
    )
    run = {
        query: {collection.corpus_ids[i]: float(s) for i, s in zip(indices[row], scores[row], strict=True)}
        for row, query in enumerate(collection.query_ids)
    }
    assert_agrees(collection.qrels, run)
    assert 0.1 < evaluate_run(collection.qrels, run).means["ndcg@10"] < 0.9


def test_agrees_with_the_formulas_by_hand() -> None:
    qrels = {"q": {"a": 3, "b": 1, "c": 0, "d": 2}}
    run = {"q": {"x": 5.0, "a": 4.0, "c": 3.0, "b": 2.0}}  # ranks: unjudged, 3, 0, 1; d (2) is never found
    gained = 3 / math.log2(3) + 1 / math.log2(5)
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert evaluate_run(qrels, run, ("ndcg@10", "mrr@10", "recall@1", "recall@2", "map@100")).means == pytest.approx(
        {"ndcg@10": gained / ideal, "mrr@10": 1 / 2, "recall@1": 0, "recall@2": 1 / 3, "map@100": (1 / 2 + 2 / 4) / 3}
    )


def test_mrr_is_cut() -> None:
    run = {"q": {f"d{rank:02}": 100.0 - rank for rank in range(1, 20)}}
    assert evaluate_run({"q": {"d10": 1}}, run).means["mrr@10"] == pytest.approx(1 / 10)
    assert evaluate_run({"q": {"d11": 1}}, run).means["mrr@10"] == 0
    assert evaluate_run({"q": {"d11": 1}}, run, ["mrr@11"]).means["mrr@11"] == pytest.approx(1 / 11)


def test_queries_without_a_relevant_document_are_left_out_and_counted() -> None:
    qrels = {"good": {"a": 1}, "all zero": {"a": 0, "b": -1}, "empty": {}}
    run = {query: {"a": 1.0} for query in qrels}
    scores = evaluate_run(qrels, run)
    assert scores.query_ids == ("good",)
    assert scores.without_relevant == 2
    assert scores.means["ndcg@10"] == 1.0


def test_a_query_missing_from_the_run_counts_zero() -> None:
    scores = evaluate_run({"found": {"a": 1}, "missing": {"a": 1}}, {"found": {"a": 1.0}})
    assert scores.means["recall@1"] == 0.5


def test_no_query_at_all_has_no_mean() -> None:
    scores = evaluate_run({}, {"q": {"a": 1.0}})
    assert scores.query_ids == ()
    assert all(math.isnan(mean) for mean in scores.means.values())


def test_equal_scores_are_ranked_by_id_from_the_largest() -> None:
    assert ranking({"a": 1.0, "c": 1.0 + 1e-12, "b": 1.0, "z": 0.5, "first": 2.0}) == ["first", "c", "b", "a", "z"]


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="document 'bad' is not a number"):
        evaluate_run({"q": {"a": 1}}, {"q": {"a": 1.0, "bad": float("nan")}})


@pytest.mark.parametrize("name", ["ndcg", "ndcg@0", "ndcg@ten", "accuracy@10", "@10"])
def test_unknown_measures_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown measure"):
        evaluate_run({}, {}, [name])
