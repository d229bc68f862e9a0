"""The regulariser of weights for tokens, against sums over the vocabulary, and the schedule of its weight."""

import pytest
import torch

from biencoder.model.representations.combined import Combined
from biencoder.model.representations.dense import Dense
from biencoder.model.representations.sparse import Sparse
from biencoder.objective.sparsity import Sparsity

QUERIES = Sparse(torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]), torch.tensor([[5, 9, 0], [9, 2, 0]]))
PASSAGES = Sparse(torch.tensor([[4.0, 1.0], [2.0, 0.0], [3.0, 5.0]]), torch.tensor([[7, 5], [7, 0], [1, 5]]))


@pytest.mark.parametrize(
    ("norm", "wanted"),
    [
        ("flops", (0.5**2 + 2.5**2) + (2.0**2 + 2.0**2 + 1.0**2)),  # words 5, 9 of queries; 7, 5, 1 of passages
        ("l1", (3.0 + 3.0) / 2 + (5.0 + 2.0 + 8.0) / 3),
    ],
)
def test_a_norm_is_its_definition_for_each_kind_of_texts(norm: str, wanted: float) -> None:
    assert float(Sparsity(0.3, norm)(QUERIES, PASSAGES)) == pytest.approx(wanted)
    beside = [Combined((Dense(torch.ones(len(side), 4)), side), (1.0, 0.3)) for side in (QUERIES, PASSAGES)]
    assert float(Sparsity(0.3, norm)(*beside)) == pytest.approx(wanted)


@pytest.mark.parametrize("norm", ["flops", "l1"])
def test_a_rank_without_texts_has_none(norm: str) -> None:
    leaves = QUERIES[:0].as_leaves()
    value = Sparsity(0.3, norm)(leaves, leaves)
    value.backward()
    assert float(value.detach()) == 0.0


def test_the_weight_rises_quadratically_over_a_third_of_the_run() -> None:
    weights = [Sparsity(0.8).at(step / 12).weight for step in range(13)]
    assert weights[:4] == pytest.approx([0.0, 0.05, 0.2, 0.45])
    assert weights[4:] == pytest.approx([0.8] * 9)
    assert max(weights) <= 0.8
