"""Linear layers after the pooling: the vectors and gradients of sentence-transformers' ``Dense`` modules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import resumed_and_whole
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tiny import WORDS, random_texts, relative_error, tiny_model
from torch import nn

from biencoder import Encoder, TrainConfig, train
from biencoder.errors import UserError
from biencoder.model.heads.dense import DenseHead
from biencoder.model.merging.merge import merge
from biencoder.model.new_heads.dense import add_dense
from biencoder.model.packing import pack

TEXTS = random_texts(20)

# As LaBSE, distiluse, EmbeddingGemma and recent releases of sentence-transformers have them.
LAYERS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "one with tanh": ([{"out_features": 32}], True),
    "one without length 1": ([{"out_features": 12}], False),
    "two without bias": (
        [
            {"out_features": 48, "bias": False, "activation_function": nn.Identity()},
            {"out_features": 16, "bias": False, "activation_function": nn.Identity()},
        ],
        True,
    ),
    "gelu and residuals": (
        [
            {"out_features": 32, "activation_function": nn.GELU(), "use_residual": True},
            {"out_features": 8, "activation_function": nn.SiLU(), "use_residual": True},
        ],
        True,
    ),
}


def with_layers(folder: Path, kind: str = "two without bias", pooling: str = "mean", seed: int = 0) -> Path:
    """A model that sentence-transformers has made and saved."""
    asked, normalize = LAYERS[kind]
    tiny_model(folder.with_name(f"{folder.name}-base"), seed=seed)
    transformer = Transformer(str(folder.with_name(f"{folder.name}-base")), max_seq_length=24)
    modules: list[nn.Module] = [transformer, Pooling(32, pooling_mode=pooling)]
    width = 32
    torch.manual_seed(seed)
    for layer in asked:
        modules.append(Dense(width, **layer))
        width = layer["out_features"]
    SentenceTransformer(modules=[*modules, *[Normalize()] * normalize], device="cpu").save(str(folder))
    return folder


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", LAYERS)
def test_vectors_and_gradients_are_those_of_sentence_transformers(tmp_path: Path, kind: str, pooling: str) -> None:
    folder = with_layers(tmp_path / "model", kind, pooling)
    encoder, peer = Encoder.load(folder), SentenceTransformer(str(folder), device="cpu").eval()
    np.testing.assert_allclose(encoder.encode(TEXTS), peer.encode(TEXTS), atol=1e-5)

    pattern = torch.linspace(-1, 1, encoder.dim)
    batch = pack(encoder.tokenize(TEXTS[:5]))
    (encoder.embed(batch) * pattern).sum().backward()
    features = peer.preprocess(TEXTS[:5])
    (peer(features)["sentence_embedding"] * pattern).sum().backward()
    layers = [module for module in peer if isinstance(module, Dense)]
    assert isinstance(encoder.head, DenseHead)
    assert len(encoder.head.layers) == len(layers)
    for own, theirs in zip(encoder.head.layers, layers, strict=True):
        wanted = dict(theirs.named_parameters())
        for name, parameter in own.named_parameters():
            assert parameter.grad is not None
            assert wanted[name].grad is not None
            assert relative_error(parameter.grad, wanted[name].grad) < 1e-5
    of_base = {name.split("auto_model.")[-1].split("model.")[-1]: p for name, p in peer[0].named_parameters()}
    embeddings = dict(encoder.backbone.named_parameters())["embeddings.word_embeddings.weight"].grad
    theirs_too = of_base["embeddings.word_embeddings.weight"].grad
    assert embeddings is not None
    assert relative_error(embeddings, theirs_too) < 1e-5


@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_saved_loads_in_both(tmp_path: Path, kind: str) -> None:
    encoder = Encoder.load(with_layers(tmp_path / "model", kind))
    encoder.save(tmp_path / "saved")
    again, peer = Encoder.load(tmp_path / "saved"), SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert again.weights_fingerprint == encoder.weights_fingerprint
    np.testing.assert_allclose(again.encode(TEXTS), peer.encode(TEXTS), atol=1e-5)


def test_vectors_cut_short(tmp_path: Path) -> None:
    folder = with_layers(tmp_path / "model")
    whole, short = Encoder.load(folder), Encoder.load(folder, dim=5)
    assert (whole.dim, short.dim) == (16, 5)
    np.testing.assert_allclose(short.encode(TEXTS), whole.cut(whole.encode(TEXTS), 5), atol=1e-6)
    with pytest.raises(UserError, match=r"--dim 17: .* makes 16 dimensions"):
        Encoder.load(folder, dim=17)


def test_a_merge_averages_the_layers(tmp_path: Path) -> None:
    folders = [with_layers(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "other"))]
    paths = [str(folder) for folder in folders]
    merge(paths, (0.25, 0.75), tmp_path / "merged", spherical=False, trust_remote_code=False)
    one, other, merged = (Encoder.load(folder).state_dict() for folder in (*folders, tmp_path / "merged"))
    assert any(name.startswith("head.layers.1") for name in merged)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.25 * one[name] + 0.75 * other[name])
    third = with_layers(tmp_path / "third", "one with tanh")
    with pytest.raises(UserError, match="only models of one kind can be merged: the Dense layers"):
        merge([paths[0], str(third)], (0.5, 0.5), tmp_path / "no", spherical=False, trust_remote_code=False)
    plain = str(tmp_path / "one-base")
    with pytest.raises(UserError, match="only models of one kind can be merged: the Dense layers"):
        merge([paths[0], plain], (0.5, 0.5), tmp_path / "no", spherical=False, trust_remote_code=False)


def run_of(base: Path, **options: Any) -> TrainConfig:
    """A run of ten steps beside its base."""
    rows = [{"query": word, "pos": [f"{WORDS[0]} {word} {WORDS[1]}"]} for word in WORDS[2:102]]
    (base.parent / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    usual: dict[str, Any] = {
        "model": str(base),
        "train_data": (base.parent / "pairs.jsonl",),
        "output_dir": base.parent / "out",
        "batch_size": 8,
        "group_size": 1,
        "learning_rate": 3e-3,
        "keep_base": 0.0,
        "general_guard": False,
        "cross_validate": False,
        "max_steps": 10,
    }
    return TrainConfig(**usual | options)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_run_trains_the_layers_and_keeps_of_the_base(tmp_path: Path) -> None:
    base = with_layers(tmp_path / "base")
    assert train(run_of(base, keep_base=0.25)) is not None
    tuned, peer = Encoder.load(tmp_path / "out"), SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(tuned.encode(TEXTS), peer.encode(TEXTS), atol=1e-5)
    before = Encoder.load(base).head.state_dict()
    assert changed(before, tuned.head.state_dict()) == set(before)


@pytest.mark.parametrize("dim", [8, 32, 40])
def test_an_added_layer_starts_as_the_directions_that_keep_most(tmp_path: Path, dim: int) -> None:
    encoder = Encoder.load(tiny_model(tmp_path / "base"), pooling="mean", normalize=False)
    whole = encoder.encode(TEXTS)
    add_dense(encoder, dim, TEXTS)
    added = encoder.encode(TEXTS)
    assert added.shape == (len(TEXTS), dim)
    u, s, v = np.linalg.svd(whole.astype(np.float64))
    best = (u[:, :dim] * s[:dim]) @ v[:dim] if dim < 20 else whole  # of rank dim, by another way
    np.testing.assert_allclose(added @ added.T, best @ best.T, atol=1e-3)


def test_a_run_with_an_added_layer(tmp_path: Path) -> None:
    base = with_layers(tmp_path / "base")
    config = run_of(base, add_dense=12, dims=(4,), keep_base=0.25)
    result = train(config)
    assert result is not None
    tuned, peer = Encoder.load(tmp_path / "out"), SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert tuned.dim == 12
    assert len(tuned.settings.layers) == 3
    assert tuned.settings.normalize
    np.testing.assert_allclose(tuned.encode(TEXTS), peer.encode(TEXTS), atol=1e-5)
    assert "4" in (tmp_path / "out" / "README.md").read_text()


def test_a_killed_run_with_an_added_layer_ends_in_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_of(tiny_model(tmp_path / "base", dropout=True), add_dense=12, keep_base=0.25, save_steps=3)
    resumed, uninterrupted = resumed_and_whole(config, monkeypatch)
    assert changed(resumed, uninterrupted) == set()


def test_frozen_layers_stay_and_a_layer_learns_alone(tmp_path: Path) -> None:
    base = with_layers(tmp_path / "base")
    before = Encoder.load(base)
    train(run_of(base, freeze_dense=True))
    frozen = Encoder.load(tmp_path / "out")
    assert changed(before.head.state_dict(), frozen.head.state_dict()) == set()
    assert changed(before.backbone.state_dict(), frozen.backbone.state_dict())
    train(run_of(base, freeze_layers=2, output_dir=tmp_path / "alone"))
    alone = Encoder.load(tmp_path / "alone")
    assert changed(before.head.state_dict(), alone.head.state_dict()) == set(before.head.state_dict())
    assert not changed(before.backbone.state_dict(), alone.backbone.state_dict())


def test_an_adapter_has_its_layer_beside_it(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    train(run_of(base, add_dense=12, lora_rank=2, lora_save="adapter"))
    tuned, peer = Encoder.load(tmp_path / "out"), SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert tuned.dim == 12
    np.testing.assert_allclose(tuned.encode(TEXTS), peer.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_dense": True}, "--freeze-dense: .* has no linear layers after its pooling"),
        ({"add_dense": 12, "dims": (16,)}, "--dims 16: --add-dense 12 makes 12 dimensions"),
        ({"freeze_layers": 2}, "--freeze-layers 2: leaves nothing to train"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(run_of(tiny_model(tmp_path / "base"), **options))
    assert not (tmp_path / "out").exists()


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "2_Dense" / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda f: (f / "2_Dense/config.json").unlink(), "config.json: missing, though modules.json"),
    "no sizes": (lambda f: edited(f, lambda c: c.pop("in_features")), "in_features and out_features must be numbers"),
    "an activation": (
        lambda f: edited(f, lambda c: c.update(activation_function="os.system")),
        "the activation os.system is not one that biencoder runs",
    ),
    "other vectors": (
        lambda f: edited(f, lambda c: c.update(module_input_name="token_embeddings")),
        "the layer goes from token_embeddings to",
    ),
    "another size": (
        lambda f: edited(f, lambda c: c.update(out_features=47)),
        "weights of its Dense layer 1 do not fit",
    ),
    "another width": (lambda f: edited(f, lambda c: c.update(in_features=31)), "takes 31 dimensions and gets 32"),
    "a pickle": (
        lambda f: (f / "2_Dense/model.safetensors").rename(f / "2_Dense/pytorch_model.bin"),
        "has no model.safe",
    ),
    "cut off": (lambda f: (f / "2_Dense/model.safetensors").write_bytes(b"\x08"), "damaged or cut off"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = with_layers(tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError, match=message):
        Encoder.load(folder)


def test_modules_in_another_order_are_refused(tmp_path: Path) -> None:
    folder = with_layers(tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules[:2], modules[-1], *modules[2:-1]]))
    with pytest.raises(UserError, match="in the order Transformer, Pooling, Dense, Normalize only"):
        Encoder.load(folder)
