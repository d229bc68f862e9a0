"""The guide masks what it finds as near to the query as the positive."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import random_texts, tiny_model

from biencoder import Encoder
from biencoder.model.packing import chunks
from biencoder.model.representations.dense import Dense
from biencoder.model.representations.representation import concatenate
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.objective.labels import BatchLabels, Labels
from biencoder.training.batch import TrainingBatch
from biencoder.training.guide import Guidance, Guide

QUERIES = Dense(torch.eye(3))
# Passage 0 answers query 0, 1 query 1, 2 query 2; 3 is nearer to query 0 than its own positive, 4 is as near.
PASSAGES = Dense(torch.tensor([[0.8, 0.6, 0], [0, 1, 0], [0, 0, 1], [0.9, 0, 0.43589], [0.8, 0, 0.6]]))
LABELS = Labels(torch.tensor([[0], [1], [2]]))


def guidance(margin: float = 0.0) -> Guidance:
    return Guidance(QUERIES, PASSAGES, QUERIES, margin)


def test_what_is_as_near_as_the_positive_is_no_negative() -> None:
    found = guidance().added_to(LABELS).known_positives
    assert found is not None
    assert found.tolist() == [
        [True, False, False, True, True],
        [False, True, False, False, False],
        [False, False, True, False, False],
    ]


def test_a_margin_takes_in_what_is_a_little_farther() -> None:
    found = guidance(0.41).added_to(LABELS).known_positives
    assert found is not None
    assert found.tolist()[1] == [True, True, False, False, False]  # 0.6 against 1
    assert found.tolist()[2] == [False, False, True, False, True]


def test_queries_that_the_positive_answers_as_well_are_found_too() -> None:
    near = replace(guidance(), all_queries=concatenate([QUERIES, Dense(torch.tensor([[0.6, 0.8, 0.0]]))]))
    answered = near.added_to(LABELS).known_queries
    assert answered is not None
    assert answered.tolist() == [
        [True, False, False, True],
        [False, True, False, False],
        [False, False, True, False],
    ]


def test_what_is_known_already_stays_known() -> None:
    known = torch.zeros(3, 5, dtype=torch.bool)
    known[2, 0] = True
    found = guidance().added_to(replace(LABELS, known_positives=known)).known_positives
    assert found is not None
    assert found[2].tolist() == [True, False, True, False, False]


def test_a_query_that_equals_its_positive_keeps_it_and_loses_its_copies() -> None:
    """The peers let such a query be its own negative."""
    queries = Dense(torch.eye(2))
    passages = Dense(torch.tensor([[1.0, 0], [0, 1], [1, 0]]))
    labels = Guidance(queries, passages, queries, 0.0).added_to(Labels(torch.tensor([[0], [1]])))
    losses = ContrastiveObjective(0.05)(queries, passages, labels)
    assert losses.total[0] < 1e-6


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_guidance_on_some_rows_is_these_rows_of_the_whole(margin: float) -> None:
    whole = guidance(margin).added_to(LABELS)
    for i in range(3):
        part = slice(i, i + 1)
        row = guidance(margin).rows(part).added_to(Labels(LABELS.groups[part], query_numbers=torch.arange(3)[part]))
        assert row.known_positives is not None
        assert whole.known_positives is not None
        assert row.known_positives.equal(whole.known_positives[part])


def test_its_vectors_are_those_of_its_encoder(tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path), pooling="mean", normalize=True)
    texts = random_texts(7)
    parts = list(chunks(encoder.tokenize(texts), 20))
    labels = BatchLabels(LABELS.groups, torch.arange(3))
    guide, batch = Guide(encoder), TrainingBatch(parts, 3, [3], [4], 3, labels, parts)
    held = guide.judge(batch, guide.encode(batch))
    wanted = torch.from_numpy(encoder.encode(texts))
    torch.testing.assert_close(concatenate([held.queries, held.passages]).vectors, wanted)
    assert held.all_queries.vectors.equal(held.queries.vectors)
    assert not held.queries.requires_grad
