import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from biencoder.model.representations.dense import Dense
from biencoder.objective.labels import Labels
from biencoder.objective.similarity import SimilarityObjective


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)


def labels(columns: list[int], scores: list[float]) -> Labels:
    return Labels(torch.tensor(columns)[:, None], teacher=torch.tensor(scores)[:, None])


def test_loss_and_gradient_are_those_of_the_cosines_squared_error(vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    queries, passages = vectors
    columns, scores = [2, 0, 5, 8, 1, 3], [0.0, 0.25, 1.0, -1.0, 0.5, 0.75]
    losses = SimilarityObjective()(Dense(queries), Dense(passages), labels(columns, scores))
    got = torch.autograd.grad(losses.total.mean(), vectors)
    cosines = (normalize(queries, dim=-1) * normalize(passages[columns], dim=-1)).sum(-1)
    wanted = mse_loss(cosines, torch.tensor(scores))
    assert losses.total.shape == (6,)
    torch.testing.assert_close(losses.total.mean(), wanted)
    for one, other in zip(got, torch.autograd.grad(wanted, vectors), strict=True):
        torch.testing.assert_close(one, other)


def test_a_pair_is_for_itself(vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    queries, passages = vectors
    whole = SimilarityObjective()(Dense(queries), Dense(passages), labels([2, 0, 5, 8, 1, 3], [0.5] * 6)).total
    part = SimilarityObjective()(Dense(queries[2:4]), Dense(passages[5:]), labels([0, 3], [0.5] * 2)).total
    torch.testing.assert_close(part, whole[2:4])


def test_float32_under_autocast(vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    queries, passages = (Dense(tensor.bfloat16()) for tensor in vectors)
    asked = labels([0] * 6, [0.5] * 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = SimilarityObjective()(queries, passages, asked).total
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got, SimilarityObjective()(queries.map(Tensor.float), passages.map(Tensor.float), asked).total
    )
