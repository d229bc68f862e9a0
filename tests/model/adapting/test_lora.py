"""LoRA beside packed, lean and checkpointed layers computes what peft computes beside plain ones."""

import importlib.util
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CONFIGS, bytes_kept, gradient_errors, gradients, padded, pool, random_texts, relative_error, tiny_model
from torch import nn
from transformers import AutoModel

from biencoder import BiEncoderModel, Encoder
from biencoder.cli import main
from biencoder.errors import UserError
from biencoder.model.adapting.freezing import freeze
from biencoder.model.adapting.lora import add_lora, merge_lora
from biencoder.model.dropout import Dropout
from biencoder.model.files.pretrained import checkpoint_activations
from biencoder.model.packing import pack

TOLERANCE = 1e-5
LENGTHS = (7, 30, 1, 12, 12, 2, 30, 5, 12)
BATCH = pack([[5 + (7 * place + length) % 150 for place in range(length)] for length in LENGTHS])
TEXTS = random_texts(20)


def with_lora(backbone: Any, *, base: str = "base", dropout: float = 0.0, first_layer: int = 0) -> Any:
    """LoRA as after some steps: the second matrices are no longer zero."""
    add_lora(backbone, rank=3, alpha=5.0, dropout=dropout, first_layer=first_layer, base=base, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return backbone


def load(folder: Path, pooling: str = "mean") -> Encoder:
    encoder = Encoder.load(folder, pooling=pooling, normalize=False)
    encoder.train()
    return encoder


def gradient_of(encoder: Encoder) -> dict[str, torch.Tensor]:
    encoder.backbone.zero_grad()
    vectors = encoder.embed(BATCH)
    (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
    return gradients(encoder.backbone)


@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_equals_padded_and_only_lora_learns(kind: str, tmp_path: Path) -> None:
    model = BiEncoderModel(str(tiny_model(tmp_path, kind))).train()
    reference = AutoModel.from_pretrained(tmp_path, attn_implementation="eager").train()
    bare = model.encode(padded(LENGTHS, padding=model.config.pad_token_id))
    add_lora(model.model, rank=3, alpha=5.0, dropout=0.0, first_layer=0, base="base", seed=1)
    untouched = model.encode(padded(LENGTHS, padding=model.config.pad_token_id))
    assert bare is not None
    assert untouched is not None
    assert relative_error(untouched, bare) <= 1e-6
    model = BiEncoderModel(str(tmp_path)).train()
    with_lora(model.model)
    with_lora(reference)
    for pooling in ("mean", "last", "cls"):  # cls and last take the shortened last layer, where there is one
        features = padded(LENGTHS, padding=model.config.pad_token_id)
        weights = torch.linspace(-1, 1, len(LENGTHS) * 32).view(-1, 32)
        want = pool(reference(**features).last_hidden_state, features["attention_mask"], pooling)
        (want * weights).sum().backward()
        model.encoder.adopt(replace(model.encoder.settings, pooling=pooling))
        got = model.encode(features)
        assert got is not None
        (got * weights).sum().backward()
        assert relative_error(got, want) <= TOLERANCE
        assert relative_error(got, bare) > 1e-2
        found = gradients(model.model)
        assert found
        assert all("lora_" in name for name in found)
        assert max(gradient_errors(found, gradients(reference))) <= 2 * TOLERANCE
        model.zero_grad()
        reference.zero_grad()


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet", "modernbert", "qwen3", "llama", "gemma"])
def test_every_linear_layer_of_the_blocks_has_it_and_no_other(kind: str, tmp_path: Path) -> None:
    backbone = with_lora(load(tiny_model(tmp_path, kind)).backbone, first_layer=1)
    found = {name.split(".lora_A")[0] for name, _ in backbone.named_parameters() if "lora_A" in name}
    plain = AutoModel.from_pretrained(tmp_path)
    linear = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    assert found == {name for name in linear if "pooler" not in name and ".0." not in name}


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "qwen3", "llama", "gemma"])
def test_merged_is_unmerged_and_a_plain_model(kind: str, tmp_path: Path) -> None:
    encoder = load(tiny_model(tmp_path / "base", kind))
    names = set(encoder.backbone.state_dict())
    with_lora(encoder.backbone)
    want = encoder.encode(TEXTS)
    merge_lora(encoder.backbone)
    np.testing.assert_allclose(encoder.encode(TEXTS), want, atol=TOLERANCE)
    assert set(encoder.backbone.state_dict()) == names
    encoder.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapter_config.json").exists()
    np.testing.assert_allclose(Encoder.load(tmp_path / "saved").encode(TEXTS), want, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["bert", "qwen3", "llama", "gemma"])
def test_an_adapter_is_loaded_by_us_and_by_sentence_transformers(kind: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    base = tiny_model(tmp_path / "base", kind)
    encoder = load(base)
    with_lora(encoder.backbone, base=str(base))
    want = encoder.encode(TEXTS)
    encoder.save(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))
    again = Encoder.load(tmp_path / "adapter")
    np.testing.assert_allclose(again.encode(TEXTS), want, atol=TOLERANCE)
    theirs = SentenceTransformer(str(tmp_path / "adapter"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, want, atol=TOLERANCE)
    again.save(tmp_path / "whole")
    np.testing.assert_array_equal(Encoder.load(tmp_path / "whole").encode(TEXTS), again.encode(TEXTS))
    trained = {name for name, parameter in again.backbone.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in again.backbone.state_dict() if not name.startswith("pooler")}


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3", "llama", "gemma"])
def test_recomputed_activations_give_the_same_gradient(kind: str, tmp_path: Path) -> None:
    """Though no input of a block needs a gradient, for the embeddings are frozen."""
    found = []
    for checkpointing in (False, True):
        encoder = load(tiny_model(tmp_path, kind))
        if checkpointing:
            checkpoint_activations(encoder.backbone)
        with_lora(encoder.backbone)
        found.append(gradient_of(encoder))
    assert found[0]
    assert max(gradient_errors(found[0], found[1])) <= TOLERANCE


def test_layers_before_the_first_with_lora_keep_nothing(tmp_path: Path) -> None:
    kept = []
    for layers in (2, 4):
        encoder = load(tiny_model(tmp_path / str(layers), num_hidden_layers=layers))
        checkpoint_activations(encoder.backbone)
        freeze(encoder.backbone, embeddings=False, layers=layers - 1)
        with_lora(encoder.backbone, first_layer=layers - 1)
        kept.append(bytes_kept(partial(encoder.embed, BATCH)))
    assert kept[0] == kept[1]


def test_dropout_acts_on_it_and_is_the_fast_one(tmp_path: Path) -> None:
    encoder = load(tiny_model(tmp_path))
    with_lora(encoder.backbone, dropout=0.3)
    found = [m for name, m in encoder.backbone.named_modules() if "lora_dropout." in name]
    assert found
    assert all(type(module) is Dropout and module.p == 0.3 for module in found)
    assert relative_error(encoder.embed(BATCH), encoder.embed(BATCH)) > 1e-3


def test_bf16_keeps_no_float32_copies(tmp_path: Path) -> None:
    """peft would cast LoRA's bf16 inputs to float32, for autocast to cast them back."""
    encoder = load(tiny_model(tmp_path))
    encoder.precision = "bf16"
    with_lora(encoder.backbone)
    lean = bytes_kept(lambda: encoder.embed(BATCH))
    for module in encoder.backbone.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = True
    assert lean <= bytes_kept(lambda: encoder.embed(BATCH))
    assert all(gradient.dtype == torch.float32 for gradient in gradient_of(encoder).values())


def make_adapter(folder: Path) -> Path:
    base = tiny_model(folder / "base")
    encoder = load(base)
    with_lora(encoder.backbone, base=str(base))
    encoder.save(folder / "adapter")
    return folder / "adapter"


def change_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_broken_adapter_is_a_clear_error(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path)
    tiny_model(tmp_path / "larger", num_hidden_layers=3, hidden_size=64)
    for changes, message in (
        ({"base_model_name_or_path": str(tmp_path / "gone")}, "is an adapter, and its base model .*gone is missing"),
        ({"base_model_name_or_path": str(tmp_path / "larger")}, "does not fit its base model"),
        ({"base_model_name_or_path": None}, "does not name its base model"),
        ({"peft_type": "IA3"}, "an adapter of the kind IA3; biencoder handles LORA only"),
    ):
        kept = (adapter / "adapter_config.json").read_text()
        change_config(adapter, **changes)
        with pytest.raises(UserError, match=message):
            Encoder.load(adapter)
        (adapter / "adapter_config.json").write_text(kept)
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(weights[:200])
    with pytest.raises(UserError, match="cannot be loaded"):
        Encoder.load(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors in it"):
        Encoder.load(adapter)
    (adapter / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a whole model and an adapter"):
        Encoder.load(adapter)


def test_without_peft_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_adapter(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "peft" else found(name, *args))
    with pytest.raises(UserError, match=r"pip install biencoder\[lora\]"):
        Encoder.load(adapter)
    with pytest.raises(UserError, match=r"--lora-rank needs the package peft.*pip install biencoder\[lora\]"):
        with_lora(load(tmp_path / "base").backbone)


def test_no_layer_left_for_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no linear layer for it in the 0 layers that are not frozen, of 2"):
        with_lora(load(tiny_model(tmp_path)).backbone, first_layer=2)


def test_an_adapter_is_averaged_with_its_base(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path)
    base = str(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    assert main(["merge", str(adapter), base, "--weights", "1", "3", "--output-dir", str(tmp_path / "merged")]) == 0
    tuned, plain, merged = (load(folder).backbone.state_dict() for folder in (adapter, Path(base), tmp_path / "merged"))
    assert any(not torch.equal(tuned[name], plain[name]) for name in plain)
    for name, weight in merged.items():
        torch.testing.assert_close(weight, (tuned[name] + 3 * plain[name]) / 4)
