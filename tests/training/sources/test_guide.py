"""The guide masks what it finds as near to the query as the positive."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import random_texts, tiny_model

from biencoder import Encoder
from biencoder.model.packing import chunks
from biencoder.objective.objective import Labels, Objective
from biencoder.training.batch import TrainingBatch
from biencoder.training.sources.guide import Guide, Opinion

QUERIES = torch.eye(3)
# Passage 0 answers query 0, 1 query 1, 2 query 2; 3 is nearer to query 0 than its own positive, 4 is as near.
PASSAGES = torch.tensor([[0.8, 0.6, 0], [0, 1, 0], [0, 0, 1], [0.9, 0, 0.43589], [0.8, 0, 0.6]])
LABELS = Labels(torch.tensor([[0], [1], [2]]))


def opinion(margin: float = 0.0) -> Opinion:
    return Opinion(QUERIES, PASSAGES, QUERIES, margin)


def test_what_is_as_near_as_the_positive_is_no_negative() -> None:
    found = opinion().added_to(LABELS).known_positive
    assert found is not None
    assert found.tolist() == [
        [True, False, False, True, True],
        [False, True, False, False, False],
        [False, False, True, False, False],
    ]


def test_a_margin_takes_in_what_is_a_little_farther() -> None:
    found = opinion(0.41).added_to(LABELS).known_positive
    assert found is not None
    assert found.tolist()[1] == [True, True, False, False, False]  # 0.6 against 1
    assert found.tolist()[2] == [False, False, True, False, True]


def test_queries_that_the_positive_answers_as_well_are_found_too() -> None:
    near = replace(opinion(), everyone=torch.cat([QUERIES, torch.tensor([[0.6, 0.8, 0.0]])]))
    answered = near.added_to(LABELS).answered
    assert answered is not None
    assert answered.tolist() == [
        [True, False, False, True],
        [False, True, False, False],
        [False, False, True, False],
    ]


def test_what_is_known_already_stays_known() -> None:
    known = torch.zeros(3, 5, dtype=torch.bool)
    known[2, 0] = True
    found = opinion().added_to(replace(LABELS, known_positive=known)).known_positive
    assert found is not None
    assert found[2].tolist() == [True, False, True, False, False]


def test_a_query_that_equals_its_positive_keeps_it_and_loses_its_copies() -> None:
    """The peers let such a query be its own negative."""
    queries = torch.eye(2)
    passages = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    labels = Opinion(queries, passages, queries, 0.0).added_to(Labels(torch.tensor([[0], [1]])))
    losses = Objective(0.05)(queries, passages, labels)
    assert losses.total[0] < 1e-6


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_the_rows_of_an_opinion_are_the_opinion_of_the_rows(margin: float) -> None:
    whole = opinion(margin).added_to(LABELS)
    for i in range(3):
        part = slice(i, i + 1)
        row = opinion(margin).rows(part).added_to(LABELS.rows(part))
        assert row.known_positive is not None
        assert whole.known_positive is not None
        assert row.known_positive.equal(whole.known_positive[part])


def test_its_vectors_are_those_of_its_encoder(tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path), pooling="mean", normalize=True)
    texts = random_texts(7)
    parts = list(chunks(encoder.tokenize(texts), 20))
    guide, batch = Guide(encoder), TrainingBatch(parts, 3, [3], [4], 3, LABELS, parts)
    held = guide.opinion_of(batch, guide.vectors_of(batch))
    wanted = torch.from_numpy(encoder.encode(texts))
    torch.testing.assert_close(torch.cat([held.queries, held.passages]), wanted)
    assert held.everyone.equal(held.queries)
    assert not held.queries.requires_grad
