"""Weights of words by a masked-language head: the values and gradients of sentence-transformers' ``SparseEncoder``."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import resumed_and_whole, small_run
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
from tiny import VOCABULARY, random_texts, tiny_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM

from biencoder import Encoder, train
from biencoder.errors import UserError
from biencoder.model.heads import best_words as blocks
from biencoder.model.heads.best_words import best_words
from biencoder.model.merging.merge import merge
from biencoder.model.new_heads.splade import make_splade
from biencoder.model.packing import pack
from biencoder.model.representations.ragged import SparseVectors
from biencoder.model.representations.sparse import Sparse
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.objective.labels import Labels
from biencoder.retrieval.search import search

PASSAGES = random_texts(8, longest=20, seed=6)
QUERIES = random_texts(8, longest=7, seed=5)


def language_model(folder: Path, kind: str = "bert", *, tied: bool = True) -> Path:
    """A random masked language model; its own files say nothing of vectors."""
    tiny_model(folder, kind)
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = tied
    torch.manual_seed(3)
    model = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().bias.normal_(-0.5, 0.5)  # about half of the words weigh nothing
    model.save_pretrained(folder)
    return folder


def with_words(folder: Path, kind: str = "bert", *, tied: bool = True) -> Encoder:
    base = language_model(folder.with_name(f"{folder.name}-base"), kind, tied=tied)
    encoder = Encoder.load(base)
    make_splade(encoder, str(base))
    return encoder


def dense(rows: Any) -> Tensor:
    """The weights of all words: ``[N, V]``."""
    assert isinstance(rows, SparseVectors)
    texts = np.repeat(np.arange(len(rows)), np.diff(rows.starts))
    whole = torch.zeros(len(rows), VOCABULARY)
    whole[texts, rows.tokens] = torch.from_numpy(rows.weights)
    return whole


@pytest.mark.parametrize(
    ("kind", "tied"),
    [("bert", True), ("bert", False), ("roberta", True), ("distilbert", True), ("mpnet", False), ("modernbert", True)],
)
def test_weights_are_those_of_sentence_transformers(tmp_path: Path, kind: str, tied: bool) -> None:
    encoder = with_words(tmp_path / "model", kind, tied=tied)
    encoder.save(tmp_path / "model")
    peer = SparseEncoder(str(tmp_path / "model"), device="cpu")
    wanted = peer.encode(PASSAGES, convert_to_sparse_tensor=False)
    for each in (encoder, Encoder.load(tmp_path / "model")):
        torch.testing.assert_close(dense(each.represent_passages(PASSAGES)), wanted.cpu(), atol=1e-5, rtol=1e-5)
    assert 0.05 < float((wanted > 0).float().mean()) < 0.95
    peer.save_pretrained(str(tmp_path / "again"))
    again = dense(Encoder.load(tmp_path / "again").represent_passages(PASSAGES))
    torch.testing.assert_close(again, wanted.cpu(), atol=1e-5, rtol=1e-5)


def test_loss_and_gradients_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    encoder = with_words(tmp_path / "model")
    encoder.save(tmp_path / "model")
    peer = SparseEncoder(str(tmp_path / "model"), device="cpu").train()  # it has no dropout
    features = [peer.preprocess(texts) for texts in (QUERIES, PASSAGES)]
    own_loss = SparseMultipleNegativesRankingLoss(peer, scale=1.0)
    parts = SpladeLoss(peer, own_loss, document_regularizer_weight=0.0, query_regularizer_weight=0.0)(features, None)
    wanted = torch.stack(list(parts.values())).sum()
    wanted.backward()
    encoder.eval()
    objective = ContrastiveObjective(1.0, normalize=False)
    labels = Labels(torch.arange(len(QUERIES))[:, None])
    queries, passages = (encoder(pack(encoder.tokenize(texts))) for texts in (QUERIES, PASSAGES))
    loss = objective(queries, passages, labels).total.mean()
    loss.backward()
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    theirs = {name: p.grad for name, p in peer[0].model.named_parameters() if p.grad is not None}
    mine = {f"bert.{name}": p.grad for name, p in encoder.backbone.named_parameters() if p.grad is not None}
    head = {name: p.grad for name, p in encoder.head.named_parameters() if p.grad is not None}
    mine |= {f"cls.predictions.{name}": gradient for name, gradient in head.items()}
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(mine[name], gradient, atol=2e-5 * max(largest, 0.1), rtol=1e-4, msg=name)


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_best_words_by_definition(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "TOKENS_AT_ONCE", at_once)
    torch.manual_seed(0)
    starts = [0, 3, 4, 9, 14]
    given = [torch.randn(14, 6).double(), torch.randn(30, 6).double(), torch.randn(30).double()]

    def by_definition(hidden: Tensor, words: Tensor, bias: Tensor) -> Tensor:
        scores = hidden @ words.T + bias
        return torch.stack([scores[a:b].max(dim=0).values for a, b in pairwise(starts)]).relu()

    def ours(hidden: Tensor, words: Tensor, bias: Tensor) -> Tensor:
        values, texts, found = best_words(hidden, words, bias, starts)
        return values.new_zeros(4, 30).index_put((texts, found), values)

    weight = torch.randn(4, 30).double()
    outcomes = []
    for function in (by_definition, ours):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        value = (function(*leaves) * weight).sum()
        value.backward()
        outcomes.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for mine, wanted in zip(*outcomes, strict=True):
        torch.testing.assert_close(mine, wanted)


def test_scores_of_pairs_are_those_of_all(tmp_path: Path) -> None:
    encoder = with_words(tmp_path / "model")
    asked, found = encoder.represent_queries(QUERIES), encoder.represent_passages(PASSAGES)
    assert isinstance(asked, SparseVectors)
    assert isinstance(found, SparseVectors)
    queries, passages = asked.padded(), found.padded()
    torch.testing.assert_close(queries.pair_scores(passages), queries.scores(passages).diagonal())
    wanted = dense(asked) @ dense(found).T
    torch.testing.assert_close(queries.scores(passages), wanted)
    scores, best = search(asked, found, 3)
    assert (best == np.argsort(-wanted.numpy(), axis=1, kind="stable")[:, :3]).all()
    np.testing.assert_allclose(scores[:, 0], wanted.max(dim=1).values, rtol=1e-5)
    nothing = Sparse(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int64))
    assert nothing.pair_scores(passages[:2]).tolist() == [0, 0]


def test_a_run_trains_and_a_killed_one_ends_in_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = str(language_model(tmp_path / "base"))
    config = small_run(tmp_path, model=base, heads="sparse", expand_words=True, save_steps=3, keep_base=0.25)
    resumed, uninterrupted = resumed_and_whole(config, monkeypatch)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)
    assert "head.transform.dense.weight" in uninterrupted


def test_training_changes_the_words_and_trains_on(tmp_path: Path) -> None:
    base = str(language_model(tmp_path / "base"))
    config = small_run(tmp_path, model=base, heads="sparse", expand_words=True)
    result = train(config)
    assert result is not None
    tuned = Encoder.load(tmp_path / "out")
    assert (tuned.kind, tuned.settings.expands) == ("sparse", True)
    assert "`SparseEncoder(folder)`" in (tmp_path / "out" / "README.md").read_text()
    before = with_words(tmp_path / "other")
    assert not torch.equal(tuned.head.state_dict()["bias"], before.head.state_dict()["bias"])
    assert (
        tuned.head.whole(tuned.backbone).get_output_embeddings().weight is tuned.backbone.get_input_embeddings().weight
    )
    further: dict[str, Any] = {"model": str(tmp_path / "out"), "heads": None, "expand_words": False}
    assert train(replace(config, **further, output_dir=tmp_path / "again")) is not None
    assert Encoder.load(tmp_path / "again").settings.expands


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    base = str(language_model(tmp_path / "base"))
    with pytest.raises(UserError, match="--expand-words: it needs --heads sparse"):
        train(small_run(tmp_path, model=base, expand_words=True))
    with pytest.raises(
        UserError, match=r"--expand-words: .* has no masked-language head that biencoder runs \(.*lacks"
    ):
        train(small_run(tmp_path, heads="sparse", expand_words=True))
    with_words(tmp_path / "words").save(tmp_path / "words")
    model = str(tmp_path / "words")
    with pytest.raises(UserError, match="--expand-words: the model has its head already"):
        train(small_run(tmp_path, model=model, heads="sparse", expand_words=True))
    with pytest.raises(UserError, match="is not merged"):
        merge([model, model], (0.5, 0.5), tmp_path / "no", spherical=False, trust_remote_code=False)
    path = tmp_path / "words" / "1_SpladePooling" / "config.json"
    path.write_text(path.read_text().replace('"max"', '"sum"'))
    with pytest.raises(UserError, match="pooling_strategy sum is not supported; biencoder handles max"):
        Encoder.load(model)
