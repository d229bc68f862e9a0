"""A weight for each word, against loops over the definition, and the files that other tools read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from numpy.typing import NDArray
from runs import metrics, resumed_and_whole, small_run
from sentence_transformers import SentenceTransformer
from tiny import VOCABULARY, random_texts, tiny_model

from biencoder import Encoder, train
from biencoder.commands.encode import run as run_encode
from biencoder.config import EncodeConfig
from biencoder.errors import UserError
from biencoder.model.distilling import distill
from biencoder.model.heads.sparse import SparseHead
from biencoder.model.merging.merge import merge
from biencoder.model.new_heads.sparse import make_sparse
from biencoder.model.packing import pack
from biencoder.model.representations.ragged import SparseVectors
from biencoder.model.representations.representation import concatenate
from biencoder.model.representations.sparse import Sparse
from biencoder.retrieval import search
from biencoder.retrieval.encode import encode_file
from biencoder.retrieval.search_texts import search_texts

PASSAGES = [f"{text} {text.split()[0]}" for text in random_texts(40, longest=15, seed=4)]  # a word twice in each
QUERIES = [" ".join(text.split()[:3]) for text in PASSAGES[:10]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    encoder = Encoder.load(tiny_model(folder / "base"))
    make_sparse(encoder, QUERIES, PASSAGES[: len(QUERIES)])
    encoder.save(folder / "model")
    (folder / "passages.txt").write_text("\n".join(PASSAGES) + "\n")
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(folder / "model")


def by_definition(encoder: Encoder, text: str) -> NDArray[np.float64]:
    """The largest weight of each token of a text, 0 for special ones: ``[V]``."""
    ids = encoder.tokenizer(text)["input_ids"]
    hidden = encoder.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
    assert isinstance(encoder.head, SparseHead)
    weights = encoder.head.linear(hidden).relu().squeeze(1).tolist()
    found = np.zeros(VOCABULARY)
    for number, weight in zip(ids, weights, strict=True):
        if number not in encoder.tokenizer.all_special_ids:
            found[number] = max(found[number], weight)
    return found


def dense(rows: SparseVectors) -> NDArray[np.float64]:
    found = np.zeros((len(rows), VOCABULARY))
    for number in range(len(rows)):
        one = rows[number : number + 1]
        assert len(set(one.tokens.tolist())) == len(one.tokens)
        found[number, one.tokens] = one.weights
    return found


def represented(encoder: Encoder, texts: list[str]) -> SparseVectors:
    found = encoder.represent_passages(texts)
    assert isinstance(found, SparseVectors)
    return found


@torch.no_grad()
def test_weights_are_the_largest_of_each_word(encoder: Encoder) -> None:
    wanted = np.stack([by_definition(encoder, text) for text in PASSAGES])
    np.testing.assert_allclose(dense(represented(encoder, PASSAGES)), wanted, atol=1e-5)
    assert 0 < (wanted > 0).sum() < sum(len(text.split()) for text in PASSAGES)


@torch.no_grad()
def test_scores_are_inner_products_over_the_vocabulary(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * encoder.text_size * 7)
    monkeypatch.setattr(search, "PAIRS_AT_ONCE", 3)
    asked, found = represented(encoder, QUERIES), represented(encoder, PASSAGES)
    wanted = dense(asked) @ dense(found).T
    np.testing.assert_allclose(asked.scores(found), wanted, atol=1e-5)
    scores, indices = search.search(asked, found, 6)
    np.testing.assert_allclose(scores, -np.sort(-wanted, axis=1)[:, :6], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(wanted, indices, axis=1), scores, atol=1e-5)
    np.testing.assert_allclose(search.score_pairs(asked, found[:10]), wanted[:, :10].diagonal(), atol=1e-5)
    queries, passages = asked.padded(), found.padded()
    groups = torch.tensor([[i, (i + 7) % 40] for i in range(10)])
    np.testing.assert_allclose(
        queries.group_scores(passages, groups), np.take_along_axis(wanted, groups.numpy(), 1), atol=1e-5
    )
    lengths = np.linalg.norm(dense(asked), axis=1) * np.linalg.norm(dense(found), axis=1)[:10]
    np.testing.assert_allclose(queries.cosines(passages[:10]), wanted[:, :10].diagonal() / lengths, atol=1e-5)


def test_short_vectors_stand_for_the_rows(encoder: Encoder) -> None:
    found = represented(encoder, PASSAGES)
    rows, vectors = dense(found), encoder.encode_passages(PASSAGES)
    assert vectors.shape == (len(PASSAGES), encoder.dim)
    cosines = rows @ rows.T / np.outer(*[np.linalg.norm(rows, axis=1)] * 2)
    assert np.abs(vectors @ vectors.T - cosines).mean() < 0.05


def test_places_and_gradients() -> None:
    one = Sparse(torch.tensor([[1.0, 2.0]]), torch.tensor([[5, 9]]))
    other = Sparse(torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[9, 7, 0]]))
    both = concatenate([one, other])
    assert both.places == (3,)
    assert both.scores(both).tolist() == [[5.0, 6.0], [6.0, 25.0]]
    assert both[:0].scores(both).shape == (0, 2)
    leaves = both.as_leaves()
    leaves.scores(leaves)[0, 1].backward()
    assert leaves.gradient().weights_NK.tolist() == [[0.0, 3.0, 0.0], [2.0, 0.0, 0.0]]
    assert not leaves.gradient().tokens_NK.any()
    assert sorted(both.mean_weights().tolist()) == [0.0, 0.5, 2.0, 2.5]
    with pytest.raises(NotImplementedError, match="cannot be cut"):
        both.cut(1, normalize=True)


def test_it_starts_near_the_inverse_document_frequency(encoder: Encoder) -> None:
    found = represented(encoder, PASSAGES)
    having = np.array([sum(f"word{i}" in text.split() for text in PASSAGES) for i in range(200)])
    rare = [w for t, w in zip(found.tokens, found.weights, strict=True) if having[t - 4] == 1]
    frequent = [w for t, w in zip(found.tokens, found.weights, strict=True) if having[t - 4] > 3]
    assert np.mean(rare) > np.mean(frequent)
    pairs = search.score_pairs(represented(encoder, QUERIES), found[: len(QUERIES)])
    assert pairs.mean() == pytest.approx(1, abs=0.2)  # passages 1 to 10 answered the queries when it was made


def test_files_that_other_tools_read(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    corpus, matrix = folder / "passages.txt", tmp_path / "out.npz"
    run_encode(EncodeConfig(model=str(folder / "model"), input=corpus, output=matrix))
    stored = scipy.sparse.load_npz(matrix)
    assert stored.shape == (40, VOCABULARY)
    np.testing.assert_allclose(stored.toarray(), dense(represented(encoder, PASSAGES)), atol=1e-6)
    encode_file(encoder, corpus, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["_id"] for line in lines] == [str(number) for number in range(1, 41)]
    for line, text in zip(lines, PASSAGES, strict=True):
        assert set(line["vector"]) <= set(text.split())
        assert sum(line["vector"].values()) == pytest.approx(by_definition(encoder, text).sum(), abs=1e-3)
    now = search_texts(encoder, QUERIES, corpus, 5)
    later = search_texts(encoder, QUERIES, corpus, 5, embeddings=matrix)
    assert [[hit.text for hit in hits] for hits in now] == [[hit.text for hit in hits] for hits in later]
    assert now[0][0].text == PASSAGES[0]


@pytest.mark.parametrize(
    ("output", "vectors", "message"),
    [
        ("out.npy", "float32", r"must be a file that ends in \.npz or \.jsonl \(the model's head is sparse\)"),
        ("out.npz", "int8", "--vectors int8: the model's head is sparse, and is stored as float32"),
    ],
)
def test_other_files_are_refused(
    encoder: Encoder, folder: Path, tmp_path: Path, output: str, vectors: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        encode_file(encoder, folder / "passages.txt", tmp_path / output, vectors=vectors)


@pytest.mark.parametrize("damage", ["text", "short", "other"])
def test_a_damaged_matrix_is_refused(encoder: Encoder, folder: Path, tmp_path: Path, damage: str) -> None:
    matrix = tmp_path / "out.npz"
    if damage == "text":
        matrix.write_text("no archive")
    elif damage == "short":
        np.savez(matrix, shape=[40, 9], indptr=np.zeros(40), indices=np.zeros(0), data=np.zeros(0))
    else:
        np.savez(matrix, vectors=np.zeros((40, 9)))
    with pytest.raises(UserError, match="cannot be read as a CSR matrix"):
        search_texts(encoder, QUERIES, folder / "passages.txt", 5, embeddings=matrix)


def test_what_is_saved_loads_again_and_other_tools_say_that_they_cannot(
    folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    encoder.save(tmp_path / "saved")
    again = Encoder.load(tmp_path / "saved")
    assert again.settings == encoder.settings
    assert np.array_equal(represented(again, PASSAGES).vectors, represented(encoder, PASSAGES).vectors)
    with pytest.raises(Exception, match="biencoder"):
        SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    merge([str(folder / "model")] * 2, (0.5, 0.5), tmp_path / "merged", spherical=False, trust_remote_code=False)
    paths = [str(folder / "model"), str(folder / "base")]
    with pytest.raises(UserError, match=r"only models of one kind can be merged: the head is (dense|sparse) in"):
        merge(paths, (0.5, 0.5), tmp_path / "no", spherical=False, trust_remote_code=False)
    with pytest.raises(UserError, match="a static model has one vector for each text, and the model's head is sparse"):
        distill(encoder, 8)
    merged = Encoder.load(tmp_path / "merged")
    np.testing.assert_allclose(represented(merged, PASSAGES).vectors, represented(encoder, PASSAGES).vectors, atol=1e-6)
    with pytest.raises(UserError, match=r"--dim 4: .* makes weights of words"):
        Encoder.load(tmp_path / "saved", dim=4)


def test_a_packed_batch_gives_what_single_texts_give(encoder: Encoder) -> None:
    tokens = encoder.tokenize(PASSAGES)
    whole = encoder(pack(tokens))
    alone = concatenate([encoder(pack([text])) for text in tokens])
    assert torch.equal(whole.tokens_NK, alone.in_places(whole.places).tokens_NK)
    torch.testing.assert_close(whole.weights_NK, alone.in_places(whole.places).weights_NK, atol=1e-6, rtol=1e-5)


def test_a_run_trains_the_weights(tmp_path: Path) -> None:
    config = small_run(tmp_path, heads="sparse", keep_base=0.25, cluster_size=4, mine_negatives=1, group_size=3)
    result = train(config)
    assert result is not None
    assert result.after.metrics["ndcg@10"] > 0.5
    tuned = Encoder.load(tmp_path / "out")
    assert tuned.kind == "sparse"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "a weight for each word" in card
    assert "library_name: biencoder" in card
    assert "sentence-transformers" not in card
    again = replace(config, model=str(tmp_path / "out"), output_dir=tmp_path / "again", heads=None, mine_negatives=0)
    assert train(again) is not None
    assert Encoder.load(tmp_path / "again").kind == "sparse"


def words_kept(folder: Path, sparsity: dict[str, Any]) -> float:
    """The weights above 0 of a passage, on average, after a run that keeps its last weights."""
    folder.mkdir()
    config = small_run(folder, heads="sparse", eval_steps=1000, **sparsity)
    train(config)
    steps = metrics(folder / "out")
    assert ["sparsity" in line for line in steps] == [bool(sparsity)] * 14
    if sparsity:
        assert steps[-1]["sparsity"] < steps[0]["sparsity"] / 2
    passages = [json.loads(line)["pos"][0] for line in (folder / "pairs.jsonl").read_text().splitlines()]
    return float((represented(Encoder.load(folder / "out"), passages).weights > 0).sum() / len(passages))


def test_a_regularised_run_keeps_fewer_words(tmp_path: Path) -> None:
    regularised = words_kept(tmp_path / "l1", {"sparsity": 1.0, "sparsity_norm": "l1"})
    assert 0 < regularised < words_kept(tmp_path / "plain", {}) / 2


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_killed_run_ends_in_the_same_model(sparsity: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_run(tmp_path, dropout=True, heads="sparse", save_steps=3, sparsity=sparsity)
    resumed, uninterrupted = resumed_and_whole(config, monkeypatch)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (8,)}, "--heads sparse with --dims: a weight for each token is no vector"),
        ({"add_dense": 8}, "--heads sparse with --add-dense"),
        ({"normalize": True}, "--heads sparse with --normalize"),
        ({"pooling": "cls"}, "--heads sparse with --pooling cls: tokens are not pooled"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(small_run(tmp_path, **{"heads": "sparse"} | options))


def test_a_head_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--heads multi: .* has the head sparse, which is not replaced"):
        train(small_run(tmp_path, model=str(folder / "model"), heads="multi"))
