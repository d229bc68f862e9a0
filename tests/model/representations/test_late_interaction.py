"""Scores and gradients of sentence-transformers' late interaction, and of loops over the definition."""

import numpy as np
import pytest
import torch
from sentence_transformers.multi_vector_encoder.scoring import colbert_scores, mean_colbert_scores
from torch import Tensor

from biencoder.model.representations import max_sim
from biencoder.model.representations.multi_vector import MultiVector
from biencoder.model.representations.ragged import TokenVectors, in_order, one_vector_each
from biencoder.model.representations.representation import concatenate


def texts(count: int, longest: int, *, seed: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Vectors of length 1, of which some in the middle are left out, and where there are any."""
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(count, longest, dim, generator=draw), dim=2)
    lengths = torch.randint(1, longest + 1, (count, 1), generator=draw)
    present = (torch.arange(longest) < lengths) & (torch.rand(count, longest, generator=draw) < 0.8)
    present[:, 0] = True
    return (vectors * present[:, :, None]).requires_grad_(), present


QUERIES, ASKED = texts(5, 6, seed=1)
PASSAGES, FOUND = texts(7, 9, seed=2)


@pytest.mark.parametrize("at_once", [2**22, 200, 1])
def test_scores_and_gradients_are_those_of_sentence_transformers(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(max_sim, "SIMILARITIES_AT_ONCE", at_once)
    own = MultiVector(QUERIES).scores(MultiVector(PASSAGES))
    theirs = mean_colbert_scores(QUERIES, PASSAGES[:, None], queries_mask=ASKED, documents_mask=FOUND[:, None])
    torch.testing.assert_close(own, theirs, atol=1e-6, rtol=1e-6)
    weights = torch.randn(own.shape, generator=torch.Generator().manual_seed(3))
    for mine, wanted in zip(
        torch.autograd.grad((own * weights).sum(), (QUERIES, PASSAGES)),
        torch.autograd.grad((theirs * weights).sum(), (QUERIES, PASSAGES)),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(MultiVector(QUERIES).scores(MultiVector(PASSAGES)), own.detach())


def test_one_query_ranks_as_by_the_sum() -> None:
    sums = colbert_scores(QUERIES, PASSAGES[:, None], queries_mask=ASKED, documents_mask=FOUND[:, None])
    means = MultiVector(QUERIES).scores(MultiVector(PASSAGES))
    assert torch.equal(sums.argsort(dim=1), means.argsort(dim=1))


def test_pairs_groups_and_cosines() -> None:
    queries, passages = MultiVector(QUERIES), MultiVector(PASSAGES)
    scores = queries.scores(passages)
    torch.testing.assert_close(queries.pair_scores(passages[:5]), scores[:, :5].diagonal())
    groups = torch.tensor([[0, 6], [1, 1], [2, 5], [3, 0], [4, 4]])
    torch.testing.assert_close(queries.group_scores(passages, groups), scores.gather(1, groups))
    longer = MultiVector(QUERIES * 3)
    torch.testing.assert_close(longer.cosines(MultiVector(PASSAGES[:5] * 0.5)), queries.pair_scores(passages[:5]))
    (mine,) = torch.autograd.grad(queries.pair_scores(passages[:5]).sum(), QUERIES, retain_graph=True)
    (wanted,) = torch.autograd.grad(scores[:, :5].diagonal().sum(), QUERIES)
    torch.testing.assert_close(mine, wanted)


def test_texts_of_batches_with_other_lengths_stand_in_one() -> None:
    both = concatenate([MultiVector(QUERIES.detach()), MultiVector(PASSAGES.detach())])
    assert both.tokens_NLD.shape == (12, 9, 8)
    torch.testing.assert_close(both[:5].scores(both[5:]), MultiVector(QUERIES).scores(MultiVector(PASSAGES)))
    apart = MultiVector(QUERIES.detach()).as_leaves()
    gradient = MultiVector(torch.ones(5, 9, 8))
    apart.plus(apart)
    (apart.map(lambda tensor: tensor * 2)).backward(gradient)
    assert apart.tokens_NLD.grad is not None
    assert torch.equal(apart.tokens_NLD.grad, torch.full((5, 6, 8), 2.0))
    assert apart.gradient().plus(gradient).tokens_NLD.shape == (5, 9, 8)


def test_vectors_cut_short_have_length_1_and_absent_ones_stay_absent() -> None:
    cut = MultiVector(QUERIES).cut(3, normalize=True)
    assert torch.equal(cut.present, ASKED)
    torch.testing.assert_close(cut.tokens_NLD.norm(dim=2), ASKED.float())


def test_outside_of_pytorch_nothing_is_padded() -> None:
    found = TokenVectors.of(MultiVector(PASSAGES.detach()))
    assert len(found) == 7
    assert len(found.vectors) == int(FOUND.sum())
    with torch.no_grad():
        whole = MultiVector(QUERIES).scores(MultiVector(PASSAGES))
        torch.testing.assert_close(MultiVector(QUERIES).scores(found.padded()), whole)
    some = found[np.array([6, 2, 2])]
    assert [len(some[i : i + 1].vectors) for i in range(3)] == FOUND.sum(dim=1)[[6, 2, 2]].tolist()
    assert np.array_equal(found[2:3].vectors, some[1:2].vectors)
    assert found.owner(len(found.vectors) - 1) == 6
    again = in_order([(np.array([1, 3]), found[1:3]), (np.array([2, 0]), found[4:6])], 8)
    assert isinstance(again, TokenVectors)
    assert np.array_equal(again[0:1].vectors, found[5:6].vectors)
    assert np.array_equal(again[3:4].vectors, found[2:3].vectors)
    means = one_vector_each(found)
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 1, atol=1e-6)
    cut = found.padded().cut(3, normalize=True)
    np.testing.assert_allclose(found.cut(3).vectors, cut.tokens_NLD[cut.present], atol=1e-6)
    assert len(found[:0]) == 0
