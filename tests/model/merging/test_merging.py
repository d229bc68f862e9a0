"""Merging as a person does it; what an average of one tensor is, is tested in test_average.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny import CONFIGS, random_texts, tiny_model

from biencoder import Encoder
from biencoder.cli import main
from biencoder.model.files.pretrained import load_backbone
from biencoder.model.merging.average import slerp
from biencoder.model.merging.merge import mix_in

TEXTS = random_texts(20)


def change(folder: Path, seed: int, dtype: torch.dtype = torch.float32) -> None:
    """Move all weights of a model on disk a little, as training does."""
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    moved = {n: (w + 0.1 * torch.randn(w.shape, generator=generator)).to(dtype) for n, w in weights.items()}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A plain base, and two models tuned from it, which mean-pool and have a prompt."""
    folders = tuple(tmp_path_factory.mktemp(name) for name in ("base", "one", "two"))
    for number, folder in enumerate(folders):
        tiny_model(folder)
        if number:
            change(folder, number)
            encoder = Encoder.load(folder, pooling="mean")
            encoder.settings = encoder.settings.with_prompts("word5 ", None)
            encoder.save(folder)
    return folders  # type: ignore[return-value]


def merge(*words: object) -> None:
    assert main(["merge", *(str(word) for word in words)]) == 0


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("given", [(), ("--weights", 2, 3, 5)])
def test_the_weights_are_the_weighted_mean(
    given: tuple[object, ...], models: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merge(*models, *given, "--output-dir", tmp_path / "merged")
    shares = [0.2, 0.3, 0.5] if given else [1 / 3] * 3
    parents = [weights_of(folder) for folder in models]
    merged = weights_of(tmp_path / "merged")
    assert merged.keys() == parents[0].keys()
    for name, tensor in merged.items():
        expected = sum(share * parent[name].double() for share, parent in zip(shares, parents, strict=True))
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    out = capsys.readouterr().out
    assert ("weights 2, 3, 5 do not sum to 1, so they are scaled: 0.2, 0.3, 0.5" in out) == bool(given)
    assert f"--baseline {models[0]}" in out


def test_weights_1_and_0_give_the_first_model_bit_for_bit(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    merge(models[1], models[2], "--weights", 1, 0, "--output-dir", tmp_path / "merged")
    first, merged = Encoder.load(models[1]), Encoder.load(tmp_path / "merged")
    assert merged.fingerprint == first.fingerprint
    np.testing.assert_allclose(merged.encode_queries(TEXTS), first.encode_queries(TEXTS), atol=1e-6)


def test_the_arc_goes_tensor_by_tensor(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    merge(models[0], models[1], "--weights", 1, 3, "--spherical", "--output-dir", tmp_path / "merged")
    one, other, merged = (weights_of(folder) for folder in (models[0], models[1], tmp_path / "merged"))
    assert all(torch.equal(tensor, slerp(one[name], other[name], 0.75)) for name, tensor in merged.items())
    assert any(not torch.allclose(t, 0.25 * one[name] + 0.75 * other[name]) for name, t in merged.items())
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "spherical" in card
    assert f"0.75    {models[1]}" in card


def test_every_tool_loads_what_is_merged(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A base that says nothing of pooling takes that of the model tuned from it, and its prompt."""
    merge(models[0], models[1], "--output-dir", tmp_path / "merged")
    encoder = Encoder.load(tmp_path / "merged")
    assert (encoder.settings.pooling, encoder.settings.query_prompt) == ("mean", "word5 ")
    theirs = SentenceTransformer(str(tmp_path / "merged"), device="cpu")
    np.testing.assert_allclose(theirs.encode_query(TEXTS), encoder.encode_queries(TEXTS), atol=1e-6)
    np.testing.assert_allclose(theirs.encode_document(TEXTS), encoder.encode_passages(TEXTS), atol=1e-6)


def test_the_dtype_is_that_of_the_first(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    small = tiny_model(tmp_path / "small")
    change(small, 5, torch.bfloat16)
    merge(small, models[0], "--output-dir", tmp_path / "merged")
    merged = weights_of(tmp_path / "merged")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    one, other = weights_of(small), weights_of(models[0])
    assert all(torch.equal(t, ((one[name].float() + other[name]) / 2).bfloat16()) for name, t in merged.items())


def test_a_pooler_that_one_lacks_is_the_others(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    bare = tiny_model(tmp_path / "bare")
    kept = {name: tensor for name, tensor in weights_of(bare).items() if not name.startswith("pooler.")}
    save_file(kept, bare / "model.safetensors", {"format": "pt"})
    merge(bare, models[1], "--output-dir", tmp_path / "merged")
    name = "pooler.dense.weight"
    assert torch.equal(weights_of(tmp_path / "merged")[name], weights_of(models[1])[name])
    merge(bare, bare, "--output-dir", tmp_path / "without")
    assert weights_of(tmp_path / "without").keys() == kept.keys()
    one, other = (Encoder.load(folder).encode(TEXTS) for folder in (tmp_path / "without", bare))
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in ("gte", "modernbert", "qwen3") if kind in CONFIGS])
def test_other_architectures(kind: str, tmp_path: Path) -> None:
    one, two = (tiny_model(tmp_path / name, kind) for name in "ab")
    change(two, 1)
    merge(one, two, "--output-dir", tmp_path / "merged")
    first, second, merged = (load_backbone(folder).state_dict() for folder in (one, two, tmp_path / "merged"))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_base_on_disk_mixed_into_a_model_in_memory(share: float, models: tuple[Path, Path, Path]) -> None:
    base, tuned = load_backbone(models[0]).state_dict(), load_backbone(models[1]).state_dict()
    mixed = Encoder.load(models[1])
    mix_in(mixed, str(models[0]), {}, share)
    for name, tensor in mixed.backbone.state_dict().items():
        torch.testing.assert_close(tensor, share * base[name] + (1 - share) * tuned[name], rtol=1e-6, atol=1e-7)
        assert torch.equal(tensor, base[name]) or share != 1
        assert torch.equal(tensor, tuned[name]) or share != 0
