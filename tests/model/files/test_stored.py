from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, tiny_model
from transformers import AutoModel

from biencoder.errors import UserError
from biencoder.model.files.pretrained import empty_backbone, load_backbone
from biencoder.model.files.stored import StoredWeights


def assert_reads_as_it_loads(folder: Path) -> None:
    backbone = empty_backbone(folder, folder)
    expected = load_backbone(folder).state_dict()
    assert list(backbone.state_dict()) == list(expected)
    with StoredWeights(folder, expected, backbone.base_model_prefix) as stored:
        for name, tensor in expected.items():
            assert name in stored
            assert stored.shape(name) == tuple(tensor.shape)
            assert torch.equal(stored[name], tensor), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_are_those_of_the_loaded_model(kind: str, tmp_path: Path) -> None:
    assert_reads_as_it_loads(tiny_model(tmp_path, kind))


def test_names_with_the_prefix_of_a_head_and_old_names_are_understood(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({f"bert.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    assert_reads_as_it_loads(folder)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in weights.items()}
    save_file({name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in old.items()},
              folder / "model.safetensors")  # fmt: skip
    assert_reads_as_it_loads(folder)


def test_shards_are_read(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_reads_as_it_loads(folder)


def test_a_pooler_may_be_missing_and_nothing_else(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    mapped = load_file(folder / "model.safetensors")
    weights = {name: tensor.clone() for name, tensor in mapped.items()}  # the file is written over
    del mapped
    save_file({n: t for n, t in weights.items() if not n.startswith("pooler.")}, folder / "model.safetensors")
    with StoredWeights(folder, weights, "bert") as stored:
        assert "pooler.dense.weight" not in stored
        assert "embeddings.word_embeddings.weight" in stored
    del weights["embeddings.word_embeddings.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks embeddings\.word_embeddings\.weight"):
        StoredWeights(folder, [*weights, "embeddings.word_embeddings.weight"], "bert")
