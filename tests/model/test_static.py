"""Static models: the vectors of sentence-transformers' ``StaticEmbedding``, in training as in use."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import stop_in_step
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, StaticEmbedding
from tiny import VOCABULARY, WORDS, random_texts, relative_error, tiny_model, tiny_tokenizer
from torch import nn

from biencoder import Encoder, TrainConfig, evaluate, train
from biencoder.data.files.beir import load_collection
from biencoder.errors import UserError
from biencoder.model.architectures.static import StaticModel
from biencoder.model.distilling import distill, sif_weights
from biencoder.model.merging.merge import merge
from biencoder.model.packing import pack

TEXTS = random_texts(30, longest=60)
AFTER: dict[str, list[nn.Module]] = {
    "plain": [],
    "length 1": [Normalize()],
    "a linear layer": [Dense(16, 8), Normalize()],
}


def static_model(folder: Path, kind: str = "length 1", seed: int = 0) -> Path:
    """A model that sentence-transformers has made and saved."""
    torch.manual_seed(seed)
    modules = [StaticEmbedding(tiny_tokenizer(), embedding_dim=16), *AFTER[kind]]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


def peer_of(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("kind", AFTER)
def test_vectors_are_those_of_sentence_transformers_before_and_after_saving(tmp_path: Path, kind: str) -> None:
    encoder = Encoder.load(static_model(tmp_path / "model", kind))
    wanted = peer_of(tmp_path / "model").encode(TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS), wanted, atol=1e-6)
    encoder.save(tmp_path / "saved")
    np.testing.assert_allclose(peer_of(tmp_path / "saved").encode(TEXTS), wanted, atol=1e-6)
    assert np.array_equal(Encoder.load(tmp_path / "saved").encode(TEXTS), encoder.encode(TEXTS))


def test_gradients_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    encoder, peer = Encoder.load(static_model(tmp_path / "model")), peer_of(tmp_path / "model")
    pattern = torch.linspace(-1, 1, encoder.dim)
    (encoder.embed(pack(encoder.tokenize(TEXTS))) * pattern).sum().backward()
    (peer(peer.preprocess(TEXTS))["sentence_embedding"] * pattern).sum().backward()
    assert isinstance(encoder.backbone, StaticModel)
    own, theirs = encoder.backbone.embedding.weight.grad, peer[0].embedding.weight.grad
    assert own is not None
    assert relative_error(own, theirs) < 1e-5


def test_a_table_in_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = static_model(tmp_path / "model")
    wanted = Encoder.load(folder).encode(TEXTS)
    (folder / "0_StaticEmbedding").mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).rename(folder / "0_StaticEmbedding" / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_StaticEmbedding"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert np.array_equal(Encoder.load(folder).encode(TEXTS), wanted)
    np.testing.assert_allclose(peer_of(folder).encode(TEXTS), wanted, atol=1e-6)


def model2vec(folder: Path, **changes: torch.Tensor) -> Path:
    """A folder as model2vec writes it: tokens share rows, and have weights."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "embeddings": torch.randn(50, 12, generator=generator, dtype=torch.float64).half(),
        "mapping": torch.randint(50, (VOCABULARY,), generator=generator, dtype=torch.int32),
        "weights": torch.rand(VOCABULARY, generator=generator, dtype=torch.float64),
    }
    save_file(tensors | changes, folder / "model.safetensors")
    tiny_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": True}))
    return folder


def test_what_model2vec_wrote(tmp_path: Path) -> None:
    folder = model2vec(tmp_path / "model")
    encoder = Encoder.load(folder)
    peer = SentenceTransformer(modules=[StaticEmbedding.load(str(folder)), Normalize()], device="cpu")
    np.testing.assert_allclose(encoder.encode(TEXTS), peer.encode(TEXTS), atol=1e-3)  # theirs is rounded to float16
    encoder.save(tmp_path / "saved")
    np.testing.assert_allclose(peer_of(tmp_path / "saved").encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)


def run_of(folder: Path, base: Path, **options: Any) -> TrainConfig:
    """A run of ten steps, whose passages are longer than those it is trained on."""
    draw = random_texts(100, longest=40, seed=3)
    rows = [{"query": word, "pos": [f"{word} {text}"]} for word, text in zip(WORDS, draw, strict=False)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    usual: dict[str, Any] = {
        "model": str(base),
        "train_data": (folder / "pairs.jsonl",),
        "output_dir": folder / "out",
        "batch_size": 8,
        "group_size": 1,
        "passage_max_len": 8,
        "keep_base": 0.25,
        "general_guard": False,
        "cross_validate": False,
        "max_steps": 10,
        "save_steps": 3,
    }
    return TrainConfig(**usual | options)


def collection(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    texts = random_texts(40, longest=40, seed=5)
    documents = [json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    queries = [json.dumps({"_id": f"q{i}", "text": text.split()[0]}) for i, text in enumerate(texts[:12])]
    (folder / "corpus.jsonl").write_text("\n".join(documents))
    (folder / "queries.jsonl").write_text("\n".join(queries))
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(12)))
    return folder


def test_a_run(tmp_path: Path) -> None:
    base = static_model(tmp_path / "base")
    result = train(run_of(tmp_path, base, eval_data=collection(tmp_path / "beir")))
    assert result is not None
    tuned = Encoder.load(tmp_path / "out")
    np.testing.assert_allclose(peer_of(tmp_path / "out").encode(TEXTS), tuned.encode(TEXTS), atol=1e-6)
    saved = evaluate(tuned, load_collection(tmp_path / "beir"))
    assert saved.metrics == result.after.metrics
    before, after = (Encoder.load(folder).backbone.state_dict() for folder in (base, tmp_path / "out"))
    assert not torch.equal(before["embedding.weight"], after["embedding.weight"])


def test_a_killed_run_ends_in_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_of(tmp_path, static_model(tmp_path / "base", "a linear layer"))
    whole = replace(config, output_dir=tmp_path / "whole")
    train(whole)

    stop_in_step(6, config, monkeypatch)
    train(config)
    resumed, uninterrupted = (Encoder.load(each.output_dir).state_dict() for each in (config, whole))
    assert all(torch.equal(tensor, uninterrupted[name]) for name, tensor in resumed.items())


def test_a_merge(tmp_path: Path) -> None:
    folders = [static_model(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "other"))]
    merge([str(folder) for folder in folders], (0.25, 0.75), tmp_path / "m", spherical=False, trust_remote_code=False)
    one, other, merged = (Encoder.load(folder).backbone.state_dict() for folder in (*folders, tmp_path / "m"))
    torch.testing.assert_close(
        merged["embedding.weight"], 0.25 * one["embedding.weight"] + 0.75 * other["embedding.weight"]
    )
    assert peer_of(tmp_path / "m").encode(TEXTS).shape == (30, 16)


def test_a_distilled_model_has_the_principal_directions_of_each_token_alone(tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path / "base"), pooling="mean", normalize=False)
    wanted = encoder.encode(list(WORDS))
    wanted -= wanted.mean(axis=0)
    made = distill(encoder, 32)
    table = made.encode(list(WORDS))
    weights = sif_weights(1 / np.arange(1, len(WORDS) + 1) / (1 / np.arange(1, len(WORDS) + 1)).sum())
    unweighted = table / weights[:, None]
    np.testing.assert_allclose(unweighted @ unweighted.T, wanted @ wanted.T, atol=1e-3)
    assert made.backbone.embedding.weight[:4].abs().sum() == 0  # special tokens say nothing

    short = distill(encoder, 5).encode(list(WORDS)) / weights[:, None]
    kept = np.linalg.svd(wanted)[1]
    assert np.linalg.norm(short) ** 2 == pytest.approx((kept[:5] ** 2).sum(), rel=1e-3)
    made.save(tmp_path / "static")
    np.testing.assert_allclose(peer_of(tmp_path / "static").encode(TEXTS), made.encode(TEXTS), atol=1e-5)


def test_texts_show_how_frequent_tokens_are(tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path / "base"), pooling="mean", normalize=False)
    even, uneven = (distill(encoder, 8, texts=texts) for texts in ([" ".join(WORDS)], ["word7 " * 99, "word8"]))
    lengths = [np.linalg.norm(made.encode(["word7", "word8", "word9"]), axis=1) for made in (even, uneven)]
    ratio = lengths[1] / lengths[0] * sif_weights(np.array([1 / len(WORDS)]))
    np.testing.assert_allclose(ratio, sif_weights(np.array([0.99, 0.01, 0.0])), rtol=1e-3)


@pytest.mark.parametrize(("dim", "message"), [(33, "--dim 33: the model makes 32 dimensions")])
def test_what_cannot_be_distilled_is_said(tmp_path: Path, dim: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        distill(Encoder.load(tiny_model(tmp_path / "base")), dim)
    with pytest.raises(UserError, match="a static model already"):
        distill(Encoder.load(static_model(tmp_path / "static")), 8)


def without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def spoil(folder: Path, name: str) -> None:
    (folder / name).write_text("{")


def with_rows(folder: Path, rows: int) -> None:
    table = load_file(folder / "model.safetensors")["embedding.weight"]
    save_file({"embedding.weight": table[:rows].clone()}, folder / "model.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no table": (lambda folder: without(folder, "model.safetensors"), "it has no model.safetensors"),
    "no tokenizer": (lambda folder: without(folder, "tokenizer.json"), "no tokenizer.json"),
    "a damaged tokenizer": (lambda folder: spoil(folder, "tokenizer.json"), "tokenizer.json cannot"),
    "another table": (
        lambda folder: save_file({"weight": torch.ones(3, 3)}, folder / "model.safetensors"),
        "holds neither embedding.weight nor embeddings",
    ),
    "too few vectors": (lambda folder: with_rows(folder, 100), "has 204 tokens, and its table 100 vectors"),
    "a damaged table": (lambda folder: spoil(folder, "model.safetensors"), "damaged or cut off"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    folder = static_model(tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError, match=message):
        Encoder.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mapping": torch.full((VOCABULARY,), 50, dtype=torch.int32)}, "names rows beyond the 50 of its table"),
        ({"weights": torch.ones(3)}, "weights for 3 tokens and vectors for 204"),
        ({"embeddings": torch.ones(50)}, r"has the shape \[50\]"),
    ],
)
def test_what_model2vec_would_not_write_is_named(
    tmp_path: Path, changes: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Encoder.load(model2vec(tmp_path / "model", **changes))


def test_what_a_static_model_has_not_is_refused(tmp_path: Path) -> None:
    folder = static_model(tmp_path / "model")
    with pytest.raises(UserError, match="--pooling cls: the vectors of a static model are means"):
        Encoder.load(folder, pooling="cls")
    with pytest.raises(UserError, match="static_embedding has no list of layers"):
        train(run_of(tmp_path, folder, freeze_layers=1))
    modules = json.loads((folder / "modules.json").read_text())
    pooling = {"idx": 2, "name": "2", "path": "2_Pooling", "type": "sentence_transformers.models.Pooling"}
    (folder / "modules.json").write_text(json.dumps([*modules, pooling]))
    with pytest.raises(UserError, match="in the order StaticEmbedding, Dense, Normalize only"):
        Encoder.load(folder)
