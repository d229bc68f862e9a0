"""Base models of every kind through the real training: what is saved is what was trained, for every tool."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import WORDS, language_model, random_texts, tiny_model
from torch import nn

from biencoder import Encoder
from biencoder.config import TrainConfig
from biencoder.distributed import sum_gradients
from biencoder.errors import UserError
from biencoder.training.run import train
from biencoder.training.state.checkpoint import newest_checkpoint

TEXTS = [*random_texts(12, longest=30), "", " ".join(WORDS)]
END = 3
DECODERS = ("qwen3", "llama", "gemma")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [{"query": f"{WORDS[i]} {WORDS[i + 100]}", "pos": [f"{WORDS[i]} {WORDS[i + 50]}"]} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    made = {kind: language_model(folder / kind, kind, dropout=True) for kind in DECODERS}
    return made | {"bert": tiny_model(folder / "bert", dropout=True)}


def configure(base: Path, data: Path, output_dir: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "batch_size": 8, "query_max_len": 8, "passage_max_len": 16, "learning_rate": 1e-2, "max_steps": 3,
        "precision": "fp32", "save_steps": 1, "general_guard": False, "cross_validate": False,
    }  # fmt: skip
    return TrainConfig(model=str(base), train_data=(data,), output_dir=output_dir, **(settings | changes))


def sentence_transformer(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


WAYS: dict[str, dict[str, Any]] = {
    "all": {},
    "lora": {"lora_rank": 2, "dropout": 0.2},
    "adapter": {"lora_rank": 2, "lora_alpha": 3.0, "lora_save": "adapter", "gradient_checkpointing": True},
    "frozen": {"freeze_layers": 1, "gradient_checkpointing": True},
    "bidirectional": {"attention": "bidirectional", "freeze_embeddings": True, "lora_rank": 2},
}


@pytest.mark.parametrize("kind", ["bert", *DECODERS])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_trained_is_what_everybody_loads(
    kind: str, way: str, bases: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    assert train(configure(bases[kind], data, tmp_path / "out", **WAYS[way])) is not None
    encoder, other = Encoder.load(tmp_path / "out"), sentence_transformer(tmp_path / "out")
    np.testing.assert_allclose(other.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)
    before = Encoder.load(bases[kind], max_length=encoder.max_length)
    before = Encoder(
        before.backbone, before.head, encoder.tokenizer, before.settings, first_position=before.first_position
    )
    assert np.abs(encoder.encode(TEXTS) - before.encode(TEXTS)).max() > 1e-3  # it learned something
    assert (tmp_path / "out" / "adapter_model.safetensors").exists() is (way == "adapter")
    assert (tmp_path / "out" / "model.safetensors").exists() is (way != "adapter")
    if kind != "bert":
        assert encoder.settings.pooling == "last"
        assert {int(ids[-1]) for ids in encoder.tokenize(TEXTS)} == {END}
        assert {len(ids) <= 16 for ids in encoder.tokenize(TEXTS)} == {True}


def test_only_lora_is_in_a_checkpoint_and_the_run_resumes_bit_for_bit(
    bases: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"lora_rank": 2, "freeze_layers": 1, "dropout": 0.2, "max_steps": 6}
    train(configure(bases["qwen3"], data, tmp_path / "whole", **settings))
    steps = iter(range(100))

    def stopping(parameters: Iterable[nn.Parameter]) -> None:
        if next(steps) == 4:
            raise KeyboardInterrupt
        sum_gradients(parameters)

    cut = configure(bases["qwen3"], data, tmp_path / "cut", **settings)
    with monkeypatch.context() as patched:
        patched.setattr("biencoder.training.steps.train_step.sum_gradients", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    newest = newest_checkpoint(tmp_path / "cut" / "checkpoints")
    assert newest is not None
    names = load_file(newest / "model.safetensors").keys()
    assert len(names) == 2 * 7  # A and B beside the seven linear layers of the one layer that is not frozen
    assert all("lora_" in name for name in names)
    train(cut)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    base = load_file(bases["qwen3"] / "model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    changed = {name for name in whole if not np.array_equal(whole[name], base[name])}
    assert len(changed) == 7
    assert all(name.startswith("layers.1.") for name in changed)


def test_the_best_weights_are_saved_with_lora_too(bases: dict[str, Path], data: Path, tmp_path: Path) -> None:
    result = train(
        configure(bases["bert"], data, tmp_path / "out", lora_rank=2, learning_rate=0.5, eval_steps=1, max_steps=5)
    )
    assert result is not None
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    measured = [line["evaluation"]["ndcg@10"] for line in lines if "evaluation" in line]
    assert result.after.metrics["ndcg@10"] == max(measured[1:])
    best = json.loads((tmp_path / "out" / "eval.json").read_text())["after_step"]
    kept = load_file(tmp_path / "out" / "checkpoints" / f"best-{best:08d}" / "model.safetensors")
    prefix = "encoder.layer.0.attention.self.query"
    product = kept[f"backbone.{prefix}.lora_B.default.weight"] @ kept[f"backbone.{prefix}.lora_A.default.weight"]
    gained = load_file(tmp_path / "out" / "model.safetensors")[f"{prefix}.weight"]
    base = load_file(bases["bert"] / "model.safetensors")[f"{prefix}.weight"]
    np.testing.assert_allclose(gained - base, 2 * product, atol=1e-5)  # alpha is twice the rank


def test_an_adapter_can_be_trained_further(bases: dict[str, Path], data: Path, tmp_path: Path) -> None:
    train(configure(bases["llama"], data, tmp_path / "adapter", lora_rank=2, lora_save="adapter"))
    with pytest.raises(UserError, match="is an adapter itself"):
        train(configure(tmp_path / "adapter", data, tmp_path / "two", lora_rank=2, lora_save="adapter"))
    assert train(configure(tmp_path / "adapter", data, tmp_path / "on", lora_rank=2)) is not None
    found = sentence_transformer(tmp_path / "on").encode(TEXTS)
    np.testing.assert_allclose(found, Encoder.load(tmp_path / "on").encode(TEXTS), atol=1e-5)


def test_a_model_with_a_convention_keeps_it(bases: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """A sentence-transformers folder whose texts end without a token: neither loading nor training adds one."""
    base = Encoder.load(bases["qwen3"])
    base.save(tmp_path / "base")
    assert base.tokenize(["word1"])[0].tolist() == Encoder.load(tmp_path / "base").tokenize(["word1"])[0].tolist()
    train(configure(tmp_path / "base", data, tmp_path / "out", lora_rank=2))
    assert Encoder.load(tmp_path / "out").tokenize(["word1"])[0].tolist() == base.tokenize(["word1"])[0].tolist()


def test_mean_pooling_needs_no_end(bases: dict[str, Path], data: Path, tmp_path: Path) -> None:
    train(configure(bases["qwen3"], data, tmp_path / "out", pooling="mean", lora_rank=2))
    encoder = Encoder.load(tmp_path / "out")
    assert len(encoder.tokenize(["word1"])[0]) == 1
    found = sentence_transformer(tmp_path / "out").encode(TEXTS[:-2])
    np.testing.assert_allclose(found, encoder.encode(TEXTS[:-2]), atol=1e-5)


def test_an_adapter_cannot_say_how_it_attends(bases: dict[str, Path], data: Path, tmp_path: Path) -> None:
    config = configure(
        bases["llama"], data, tmp_path / "out", lora_rank=2, lora_save="adapter", attention="bidirectional"
    )
    with pytest.raises(UserError, match="--lora-save adapter with --attention bidirectional"):
        train(config)
    assert not (tmp_path / "out").exists()
