import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hashing_encoder import HashingEncoder

from biencoder.data.files.beir import Collection
from biencoder.errors import UserError
from biencoder.retrieval import search
from biencoder.retrieval.comparing.comparison import COMPARISON_COLUMNS, compare, comparison_json, comparison_rows
from biencoder.retrieval.evaluate import WHOLE, Evaluation, evaluate, retrieve, texts_to_encode
from biencoder.retrieval.metrics import MEASURES
from biencoder.retrieval.text_encoder import Advance
from biencoder.retrieval.trec import write_trec_run


def make_collection(seed: int = 0, *, queries: int = 30, documents: int = 400) -> Collection:
    """Documents of random words; a query holds words of its relevant document, and others."""
    random = np.random.default_rng(seed)
    words = [[f"w{w}" for w in random.integers(0, 300, 12)] for _ in range(documents)]
    relevant = random.integers(0, documents, queries)
    return Collection(
        corpus_ids=[f"d{i}" for i in range(documents)],
        corpus_texts=[" ".join(text) for text in words],
        query_ids=[f"q{i}" for i in range(queries)],
        query_texts=[" ".join([*words[d][:3], *(f"w{w}" for w in random.integers(0, 300, 2))]) for d in relevant],
        qrels={f"q{i}": {f"d{d}": 2, f"d{(d + 1) % documents}": 1, "d0": 0} for i, d in enumerate(relevant)},
        description="random words: 30 queries, 400 documents",
    )


COLLECTION = make_collection()


def trec_eval(collection: Collection, run: dict[str, dict[str, float]]) -> dict[str, float]:
    names = {"ndcg@10": "ndcg_cut_10", "recall@5": "recall_5", "recall@100": "recall_100", "map@100": "map_cut_100"}
    results = pytrec_eval.RelevanceEvaluator(collection.qrels, set(names.values())).evaluate(run)
    return {name: float(np.mean([each[trec] for each in results.values()])) for name, trec in names.items()}


def test_a_collection_may_ignore_the_document_that_is_the_query() -> None:
    same = replace(
        COLLECTION, corpus_ids=[f"q{i}" for i in range(400)], qrels={f"q{i}": {"q399": 1} for i in range(30)}
    )
    same = replace(same, corpus_texts=[*same.query_texts, *same.corpus_texts[30:]])
    encoder = HashingEncoder()
    found = retrieve(encoder, same, k=100)[WHOLE]
    without = retrieve(encoder, replace(same, ignores_itself=True), k=100)[WHOLE]
    for query, documents in found.items():
        assert next(iter(documents)) == query
        assert list(without[query])[:99] == list(documents)[1:]
        assert len(without[query]) == 100


def test_equals_the_full_product_scored_by_trec_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = HashingEncoder(normalize=False)
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * encoder.dim * 37)  # blocks of 37 documents
    evaluation = evaluate(encoder, COLLECTION)
    scores = encoder.encode_queries(COLLECTION.query_texts) @ encoder.encode_passages(COLLECTION.corpus_texts).T
    run = {
        query: {COLLECTION.corpus_ids[i]: float(row[i]) for i in np.argsort(-row, kind="stable")[:100]}
        for query, row in zip(COLLECTION.query_ids, scores, strict=True)
    }
    expected = trec_eval(COLLECTION, run)
    assert {name: evaluation.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert tuple(evaluation.metrics) == MEASURES
    assert 0.2 < evaluation.metrics["ndcg@10"] < 0.95
    assert (evaluation.queries, evaluation.documents) == (30, 400)
    assert evaluation.description == COLLECTION.description


def test_means_are_those_of_the_values_per_query() -> None:
    evaluation = evaluate(HashingEncoder(), COLLECTION)
    for name, values in evaluation.per_query.items():
        assert list(values) == sorted(COLLECTION.query_ids)
        assert evaluation.metrics[name] == pytest.approx(np.mean(list(values.values())))


def test_the_prompts_of_the_model_are_used() -> None:
    with_prompts = HashingEncoder(query_prompt="w1 w2 w3 ", passage_prompt="w4 w5 ")
    by_hand = Collection(
        COLLECTION.corpus_ids,
        ["w4 w5 " + text for text in COLLECTION.corpus_texts],
        COLLECTION.query_ids,
        ["w1 w2 w3 " + text for text in COLLECTION.query_texts],
        COLLECTION.qrels,
        COLLECTION.description,
    )
    assert evaluate(with_prompts, COLLECTION) == evaluate(HashingEncoder(), by_hand)
    assert evaluate(with_prompts, COLLECTION) != evaluate(HashingEncoder(), COLLECTION)


def test_queries_without_a_relevant_document_are_left_out_and_said() -> None:
    qrels = {query: {"d0": 0} if i < 4 else judged for i, (query, judged) in enumerate(COLLECTION.qrels.items())}
    collection = Collection(
        COLLECTION.corpus_ids, COLLECTION.corpus_texts, COLLECTION.query_ids, COLLECTION.query_texts, qrels, "some data"
    )
    encoder = HashingEncoder()
    evaluation = evaluate(encoder, collection)
    assert evaluation.queries == 26
    assert evaluation.description == "some data; 4 queries without a relevant document do not count"
    assert encoder.texts_seen == 26 + 400 == texts_to_encode(collection)
    nothing = Collection(["d"], ["text"], ["q"], ["text"], {"q": {"d": 0}}, "empty data")
    with pytest.raises(UserError, match="empty data: no query has a relevant document"):
        evaluate(encoder, nothing)


def test_progress_counts_queries_and_then_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * 64 * 37)
    seen: list[int] = []
    evaluate(HashingEncoder(), COLLECTION, progress=seen.append)
    assert seen == list(range(1, texts_to_encode(COLLECTION) + 1))


def test_fewer_documents_than_results() -> None:
    found = retrieve(HashingEncoder(), make_collection(documents=7), k=100)[WHOLE]
    assert all(len(scores) == 7 for scores in found.values())


@pytest.mark.parametrize("side", ["query", "document"])
def test_a_diverged_model_is_named(side: str) -> None:
    class Diverged(HashingEncoder):
        def encode(self, texts: Sequence[str], prompt: str = "", progress: Advance | None = None) -> np.ndarray:
            vectors = super().encode(texts, prompt, progress)
            if (len(texts) == 30) == (side == "query"):
                vectors[4] = np.nan
            return vectors

    with pytest.raises(UserError, match=f"{side} 5: .* not finite"):
        evaluate(Diverged(), COLLECTION)


def test_json_says_what_the_figures_are() -> None:
    evaluation = evaluate(HashingEncoder(), COLLECTION)
    assert evaluation.to_json() == {
        "metrics": evaluation.metrics,
        "queries": 30,
        "documents": 400,
        "description": COLLECTION.description,
    }


def test_a_trec_run_gives_the_same_figures_to_trec_eval(tmp_path: Path) -> None:
    found = retrieve(HashingEncoder(), COLLECTION)[WHOLE]
    write_trec_run(tmp_path / "run.trec", found, tag="my model")
    lines = [line.split(" ") for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert all(len(line) == 6 and line[1] == "Q0" and line[5] == "my_model" for line in lines)
    assert [int(line[3]) for line in lines[:100]] == list(range(1, 101))
    read: dict[str, dict[str, float]] = {}
    for query, _, document, _, value, _ in lines:
        read.setdefault(query, {})[document] = float(value)
    assert {q: {d: np.float32(v) for d, v in s.items()} for q, s in read.items()} == found
    expected = trec_eval(COLLECTION, read)
    metrics = evaluate(HashingEncoder(), COLLECTION).metrics
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("found", [{"a query": {"d": 1.0}}, {"q": {"d\t1": 1.0}}, {"q": {"": 1.0}}])
def test_a_trec_run_cannot_hold_white_space_in_ids(tmp_path: Path, found: dict[str, dict[str, float]]) -> None:
    with pytest.raises(UserError, match="white space"):
        write_trec_run(tmp_path / "run.trec", found)
    assert list(tmp_path.iterdir()) == []


def test_compare_finds_a_real_difference_and_none_where_there_is_none() -> None:
    collection = make_collection(1, queries=200)
    poor, good = evaluate(HashingEncoder(dim=16), collection), evaluate(HashingEncoder(dim=256), collection)
    by_measure = {each.measure: each for each in compare(poor, good)}
    assert tuple(by_measure) == MEASURES
    ndcg = by_measure["ndcg@10"]
    assert ndcg.before == poor.metrics["ndcg@10"]
    assert ndcg.after == good.metrics["ndcg@10"]
    assert ndcg.difference == pytest.approx(ndcg.after - ndcg.before)
    assert 0 < ndcg.low < ndcg.difference < ndcg.high
    assert ndcg.p == pytest.approx(1 / 10_001)
    same = compare(good, good)[0]
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_compare_does_not_depend_on_the_order_of_the_queries() -> None:
    before, after = evaluate(HashingEncoder(dim=32), COLLECTION), evaluate(HashingEncoder(), COLLECTION)
    turned = Evaluation(
        after.metrics,
        {name: dict(reversed(values.items())) for name, values in after.per_query.items()},
        after.queries,
        after.documents,
        after.description,
    )
    assert compare(before, turned) == compare(before, after)


def test_compare_refuses_evaluations_of_other_queries() -> None:
    with pytest.raises(ValueError, match="same queries"):
        compare(evaluate(HashingEncoder(), COLLECTION), evaluate(HashingEncoder(), make_collection(queries=29)))


def test_comparisons_as_a_table_and_as_json() -> None:
    comparisons = compare(evaluate(HashingEncoder(dim=32), COLLECTION), evaluate(HashingEncoder(), COLLECTION))
    rows = comparison_rows(comparisons)
    assert all(len(row) == len(COMPARISON_COLUMNS) for row in rows)
    assert rows[0][:3] == ["ndcg@10", f"{comparisons[0].before:.4f}", f"{comparisons[0].after:.4f}"]
    assert re.fullmatch(r"[+-]\d\.\d{4}", rows[0][3])
    assert comparison_json(comparisons)[0]["measure"] == "ndcg@10"
