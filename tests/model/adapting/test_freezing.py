"""Frozen parts learn nothing and keep nothing."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import CONFIGS, bytes_kept, gradients, tiny_model
from transformers import AlbertConfig, AutoModel

from biencoder import Encoder
from biencoder.errors import UserError
from biencoder.model.adapting.freezing import find_blocks, freeze
from biencoder.model.files.pretrained import checkpoint_activations
from biencoder.model.packing import pack

BATCH = pack([[5 + place for place in range(length)] for length in (40, 17, 17, 3)])


def load(folder: Path, kind: str = "bert", layers: int = 2, checkpointing: bool = False) -> Encoder:
    path = tiny_model(folder, kind, num_hidden_layers=layers) if kind != "distilbert" else tiny_model(folder, kind)
    encoder = Encoder.load(path, pooling="mean", normalize=False)
    if checkpointing:
        checkpoint_activations(encoder.backbone)
    encoder.train()
    return encoder


def trained(encoder: Encoder) -> set[str]:
    encoder.backbone.zero_grad()
    encoder.embed(BATCH).square().sum().backward()
    found = gradients(encoder.backbone)
    wanted = {name for name, parameter in encoder.backbone.named_parameters() if parameter.requires_grad}
    assert found.keys() == wanted
    return set(found)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_first_blocks_and_what_stands_before_them_learn_nothing(kind: str, tmp_path: Path) -> None:
    encoder = load(tmp_path, kind)
    name, _ = find_blocks(encoder.backbone)
    everything = trained(encoder)
    freeze(encoder.backbone, embeddings=True, layers=0)
    without_embeddings = trained(encoder)
    gone = everything - without_embeddings
    assert any("embed" in each for each in gone)
    assert not [each for each in gone if each.startswith(name)]
    assert not [each for each in without_embeddings if each.startswith("embed")]
    freeze(encoder.backbone, embeddings=False, layers=1)
    assert without_embeddings - trained(encoder) == {each for each in everything if each.startswith(f"{name}.0.")}


@pytest.mark.parametrize("kind", ["bert", "mpnet", "modernbert", "qwen3", "gemma"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_parts_keep_no_activations(kind: str, checkpointing: bool, tmp_path: Path) -> None:
    """Two frozen layers below a third keep what no layers below it keep: what is left does not grow with them."""
    if checkpointing and kind == "mpnet":
        pytest.skip("transformers cannot checkpoint it")
    kept = []
    for layers in (2, 3, 4):
        encoder = load(tmp_path / str(layers), kind, layers, checkpointing)
        before = bytes_kept(partial(encoder.embed, BATCH))
        freeze(encoder.backbone, embeddings=False, layers=layers - 1)
        kept.append(bytes_kept(partial(encoder.embed, BATCH)))
        assert kept[-1] < before
    if kind != "modernbert":  # whose layers are not all alike
        assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize("kind", ["bert", "qwen3", "llama", "gemma"])
def test_gradients_with_frozen_parts_are_those_without(kind: str, tmp_path: Path) -> None:
    """Also when activations are recomputed, of inputs that need no gradient."""
    found = []
    for frozen, checkpointing in ((False, False), (True, False), (True, True)):
        encoder = load(tmp_path, kind, checkpointing=checkpointing)
        if frozen:
            freeze(encoder.backbone, embeddings=False, layers=1)
        trained(encoder)
        found.append(gradients(encoder.backbone))
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, found[0][name])
        torch.testing.assert_close(gradient, found[2][name])
    assert found[0].keys() > found[1].keys() == found[2].keys()


def test_what_cannot_be_frozen_is_said(tmp_path: Path) -> None:
    backbone = load(tmp_path).backbone
    with pytest.raises(UserError, match="--freeze-layers 3: the model has 2 layers"):
        freeze(backbone, embeddings=False, layers=3)
    albert = AutoModel.from_config(AlbertConfig(vocab_size=9, embedding_size=8, hidden_size=8, num_attention_heads=2))
    with pytest.raises(UserError, match="albert has no list of layers"):
        freeze(albert, embeddings=True, layers=0)
