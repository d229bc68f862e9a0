"""The collection that comes with biencoder: whole, without doubles, and far from solved by a real model."""

from dataclasses import replace

import pytest

from biencoder import Encoder, evaluate
from biencoder.data.evaluation.general_english import FILE, general_english


def test_a_thousand_definitions_and_as_many_answers_and_more() -> None:
    found = general_english()
    assert len(set(found.query_texts)) == 1000
    assert len(set(found.corpus_texts)) == 1500
    assert [list(judged.values()) for judged in found.qrels.values()] == [[1]] * 1000
    answers = dict(zip(found.corpus_ids, found.corpus_texts, strict=True))
    for query, text in zip(found.query_ids, found.query_texts, strict=True):
        (document,) = found.qrels[query]
        assert text.casefold() not in answers[document].casefold()  # or counting words would find it


def test_its_licence_lies_beside_it() -> None:
    licence = FILE.with_name("WORDNET_LICENSE").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence
    assert licence.rstrip().endswith("LICENSEE agrees to preserve same.")


@pytest.mark.slow
def test_a_real_model_neither_solves_it_nor_only_guesses(minilm: str) -> None:
    whole = general_english()
    ids = whole.query_ids[:200]
    part = replace(
        whole, query_ids=ids, query_texts=whole.query_texts[:200], qrels={query: whole.qrels[query] for query in ids}
    )
    found = evaluate(Encoder.load(minilm, max_length=64, precision="auto"), part).metrics["ndcg@10"]
    assert 0.3 < found < 0.7
