"""The objective against loops over its definition, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from biencoder.model.representations.dense import Dense
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.objective.labels import BatchLabels, Labels
from biencoder.objective.marks import Marks

NAN = float("nan")
GROUPS = torch.tensor([[0, 1, 2], [3, 4, -1], [5, -1, -1], [6, 7, 8]])
KNOWN = torch.zeros(4, 9, dtype=torch.bool)
KNOWN[0, [0, 3, 2]] = True  # its own positive, another query's, and one of its own hard negatives
KNOWN[2, [0, 6]] = True
TEACHER = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, NAN], [4.0, NAN, NAN], [0.3, NAN, 0.1]])


def vectors(temperature_like: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries, passages = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (4, 9))
    if temperature_like == 1.0:
        return queries, passages
    return queries / queries.norm(dim=-1, keepdim=True), passages / passages.norm(dim=-1, keepdim=True)


def in_batch_labels(known_queries: Tensor | None = None) -> BatchLabels:
    """The labels of all four queries as a batch holds them."""
    queries = None if known_queries is None else marks(known_queries)
    return BatchLabels(GROUPS, torch.arange(4), marks(KNOWN), TEACHER, queries)


def marks(mask: Tensor) -> Marks:
    rows, columns = np.nonzero(mask.numpy())
    return Marks.of(rows, columns, (len(mask), mask.shape[1]))


def by_definition(
    queries: Tensor, passages: Tensor, objective: ContrastiveObjective, labels: Labels
) -> list[tuple[Tensor, Tensor]]:
    """(contrastive, distillation) of each query."""
    losses = []
    for i, query in enumerate(queries):
        group = [j for j in labels.groups[i].tolist() if j >= 0]
        candidates = list(range(len(passages))) if objective.in_batch_negatives else group
        if labels.known_positives is not None:
            candidates = [j for j in candidates if j == group[0] or not labels.known_positives[i, j]]
        score = {j: query @ passages[j] / objective.temperature for j in {*candidates, *group}}
        contrast = torch.stack([score[j] for j in candidates]).logsumexp(0) - score[group[0]]
        distilled = torch.zeros(())
        if labels.teacher is not None:
            taught = [(j, t) for j, t in zip(group, labels.teacher[i].tolist(), strict=False) if not math.isnan(t)]
            if len(taught) > 1:
                student = torch.stack([score[j] for j, _ in taught]).log_softmax(0)
                distilled = -(torch.tensor([t for _, t in taught], dtype=torch.float64).softmax(0) * student).sum()
        losses.append((contrast, distilled))
    return losses


@pytest.mark.parametrize(
    ("in_batch", "masked", "taught", "temperature"),
    list(itertools.product([True, False], [True, False], [True, False], [0.01, 1.0])),
)
def test_objective_is_its_definition(in_batch: bool, masked: bool, taught: bool, temperature: float) -> None:
    objective = ContrastiveObjective(temperature, in_batch, distillation_weight=0.3)
    labels = Labels(GROUPS, KNOWN if masked else None, TEACHER if taught else None)
    exact = [x.requires_grad_() for x in vectors(temperature)]
    wanted = by_definition(exact[0], exact[1], objective, labels)
    torch.stack([contrast + 0.3 * distilled for contrast, distilled in wanted]).mean().backward()
    queries, passages = (x.detach().float().requires_grad_() for x in exact)
    losses = objective(Dense(queries), Dense(passages), labels)
    losses.total.mean().backward()
    torch.testing.assert_close(losses.contrastive.double(), torch.stack([c for c, _ in wanted]), rtol=1e-5, atol=2e-5)
    if losses.distillation is not None:
        torch.testing.assert_close(
            losses.distillation.double(), torch.stack([d for _, d in wanted]), rtol=1e-5, atol=1e-5
        )
    assert (losses.distillation is None) is not taught
    assert losses.scores.shape == ((4, 9) if in_batch else (4, 3))
    for got, want in zip((queries, passages), exact, strict=True):
        assert got.grad is not None
        assert want.grad is not None
        assert float((got.grad - want.grad).norm() / want.grad.norm()) < 1e-5


def test_blocks_of_queries_give_the_same_losses() -> None:
    queries, passages = (Dense(x.float()) for x in vectors())
    labels = in_batch_labels()
    whole = ContrastiveObjective(1.0)(queries, passages, Labels(GROUPS, KNOWN, TEACHER)).total
    parts = [
        ContrastiveObjective(1.0)(queries[i : i + 1], passages, labels.rows(slice(i, i + 1))).total for i in range(4)
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("in_batch", [True, False])
def test_groups_of_one_passage(in_batch: bool) -> None:
    queries, passages = (x.float().requires_grad_() for x in vectors())
    labels = Labels.of_groups(4, 1, torch.device("cpu"))
    labels = Labels(labels.groups, teacher=torch.ones(4, 1))
    losses = ContrastiveObjective(1.0, in_batch)(Dense(queries), Dense(passages[:4]), labels)
    losses.total.sum().backward()
    assert losses.distillation is not None
    assert losses.distillation.tolist() == [0.0] * 4
    assert (losses.contrastive > 0).all() if in_batch else losses.contrastive.tolist() == [0.0] * 4
    assert queries.grad is not None
    assert queries.grad.isfinite().all()
    assert queries.grad.any() == in_batch


def test_a_query_whose_every_negative_is_masked_has_no_loss() -> None:
    queries, passages = (Dense(x.float()) for x in vectors())
    for in_batch in (True, False):
        losses = ContrastiveObjective(0.02, in_batch)(
            queries, passages, Labels(GROUPS, torch.ones(4, 9, dtype=torch.bool))
        )
        assert losses.total.tolist() == [0.0] * 4


def test_similarity_is_float32_whatever_autocast_says() -> None:
    queries, passages = (Dense(x.float()) for x in vectors(0.01))
    for in_batch in (True, False):
        objective = ContrastiveObjective(0.01, in_batch)
        plain = objective(queries, passages, Labels(GROUPS, KNOWN, TEACHER))
        with torch.autocast("cpu", torch.bfloat16):
            cast = objective(queries, passages, Labels(GROUPS, KNOWN, TEACHER))
            rounded = objective(queries.map(Tensor.bfloat16), passages.map(Tensor.bfloat16), Labels(GROUPS))
        assert torch.equal(plain.total, cast.total)
        assert torch.equal(plain.scores, cast.scores)
        assert rounded.total.dtype == torch.float32


def test_labels_of_equal_groups() -> None:
    assert Labels.of_groups(2, 3, torch.device("cpu")).groups.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_two_ways_are_the_mean_of_each_alone() -> None:
    """Radford et al. 2021, figure 3: the loss over rows and the loss over columns, halved."""
    queries, passages = (Dense(x.float()) for x in vectors())
    labels = Labels.of_groups(4, 2, torch.device("cpu"))
    forth = ContrastiveObjective(0.3)(queries, passages[:8], labels).contrastive
    alone = ContrastiveObjective(0.3)(passages[:8:2], queries, Labels(torch.arange(4)[:, None])).contrastive
    both = ContrastiveObjective(0.3, two_way=True)(queries, passages[:8], labels).contrastive
    torch.testing.assert_close(both, (forth + alone) / 2)


def test_a_query_that_the_positive_answers_is_none_to_tell_it_from() -> None:
    queries, passages = (Dense(x.float()) for x in vectors())
    answered = torch.zeros(4, 4, dtype=torch.bool)
    answered[1, [0, 1]] = True
    masked, plain = (
        ContrastiveObjective(1.0, two_way=True)(queries, passages, Labels(GROUPS, known_queries=known)).contrastive
        for known in (answered, None)
    )
    assert masked[1] < plain[1]
    assert masked[[0, 2, 3]].equal(plain[[0, 2, 3]])
    everyone = torch.ones(4, 4, dtype=torch.bool)  # its own query is always there
    forth = ContrastiveObjective(1.0)(queries, passages, Labels(GROUPS)).contrastive
    all_known = ContrastiveObjective(1.0, two_way=True)(
        queries, passages, Labels(GROUPS, known_queries=everyone)
    ).contrastive
    torch.testing.assert_close(all_known, forth / 2)


def test_two_ways_in_blocks_of_queries_are_the_whole() -> None:
    queries, passages = (Dense(x.float()) for x in vectors())
    answered = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) < 0.3
    labels = in_batch_labels(answered)
    objective = ContrastiveObjective(1.0, two_way=True)
    parts = [objective(queries[i : i + 1], passages, labels.rows(slice(i, i + 1)), queries).total for i in range(4)]
    whole = objective(queries, passages, Labels(GROUPS, KNOWN, TEACHER, torch.arange(4), answered)).total
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("normalize", [True, False])
def test_nested_dimensions_are_the_mean_over_vectors_cut_and_scaled_again(normalize: bool) -> None:
    queries, passages = (Dense(x.float()) for x in vectors(0.01))
    labels = Labels(GROUPS, KNOWN, TEACHER)
    nested = ContrastiveObjective(0.1, dims=(6, 4, 1), normalize=normalize)(queries, passages, labels)
    each = []
    for dim in (6, 4, 1):
        short = [x.vectors[:, :dim] for x in (queries, passages)]
        cut = [Dense(x / x.norm(dim=1, keepdim=True) if normalize else x) for x in short]
        each.append(ContrastiveObjective(0.1)(cut[0], cut[1], labels))
    torch.testing.assert_close(nested.total, torch.stack([losses.total for losses in each]).mean(0))
    assert nested.distillation is not None
    torch.testing.assert_close(nested.scores, each[0].scores)
