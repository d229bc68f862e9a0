"""ONNX files give the vectors of the models that they were made from."""

import sys
from pathlib import Path

import onnx
import pytest
import torch
from tiny import CONFIGS, WORDS, tiny_model

from biencoder import Encoder
from biencoder.errors import UserError
from biencoder.model.heads.dense import DenseHead
from biencoder.model.onnx import export
from biencoder.model.onnx.encoder import OnnxEncoder
from biencoder.model.onnx.export import FILE, INT8_FILE, OPSET, TEXTS, TOKENS, PaddedModel, write_int8, write_onnx
from biencoder.model.parity import parity
from biencoder.model.pooling import POOLINGS

ARCHITECTURES = ("bert", "roberta", "modernbert", "deberta-v2", "qwen3")  # of those that we pack, and one that we pad


def exported(folder: Path, kind: str, **settings: object) -> tuple[Encoder, Path]:
    """A random model with a file made from it."""
    encoder = Encoder.load(tiny_model(folder / "model", kind), **settings)  # type: ignore[arg-type]
    encoder.adopt(encoder.settings.with_prompts("query: ", "passage: "))
    encoder.save(folder / "out")
    encoder = Encoder.load(folder / "out")
    return encoder, write_onnx(encoder, folder / "out")


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind in CONFIGS])
def test_architectures_give_the_same_vectors(kind: str, tmp_path: Path) -> None:
    encoder, file = exported(tmp_path, kind)
    found = parity(encoder, OnnxEncoder(file, encoder))
    assert found.difference < 2e-6
    assert found.cosine > 0.999999


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("last", False), ("cls", False)])
def test_pooling_and_normalisation_are_inside(pooling: str, normalize: bool, tmp_path: Path) -> None:
    encoder, file = exported(tmp_path, "bert", pooling=pooling, normalize=normalize)
    assert parity(encoder, OnnxEncoder(file, encoder)).difference < 5e-6
    model = onnx.load(file)
    assert [each.name for each in model.graph.output] == [TOKENS, TEXTS]
    assert {each.version for each in model.opset_import if not each.domain} == {OPSET}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (0, 2)])
def test_pooling_leaves_padding_out_on_either_side(pooling: str, before: int, after: int, tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path), pooling=pooling, normalize=False)
    assert isinstance(encoder.head, DenseHead)
    hidden = torch.randn(7, 32)
    expected = POOLINGS[pooling](hidden, torch.tensor([0, 7], dtype=torch.int32))
    padded = torch.nn.functional.pad(hidden, (0, 0, before, after), value=1e3)[None]
    mask = torch.nn.functional.pad(torch.ones(7, dtype=torch.int64), (before, after))[None]
    torch.testing.assert_close(PaddedModel(tmp_path, encoder.head).pooled(padded, mask), expected)


def test_linear_layers_are_inside(tmp_path: Path) -> None:
    from biencoder.model.new_heads.dense import add_dense

    encoder = Encoder.load(tiny_model(tmp_path / "model"))
    add_dense(encoder, 8, list(WORDS[:50]))
    encoder.save(tmp_path / "out")
    encoder = Encoder.load(tmp_path / "out")
    runs = OnnxEncoder(write_onnx(encoder, tmp_path / "out"), encoder)
    assert runs.encode(["a word"]).shape == (1, 8)
    assert parity(encoder, runs).difference < 2e-6


def test_weights_in_int8_are_smaller_and_nearly_the_same(tmp_path: Path) -> None:
    encoder, file = exported(tmp_path, "bert", pooling="mean")
    small = write_int8(tmp_path / "out")
    assert (file, small) == (tmp_path / "out" / FILE, tmp_path / "out" / INT8_FILE)
    kinds = {tensor.data_type for tensor in onnx.load(small).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    found = parity(encoder, OnnxEncoder(small, encoder))
    assert 1e-6 < found.difference < 0.1
    assert found.cosine > 0.95


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(tiny_model(tmp_path / "model"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"--format onnx needs onnxscript: pip install 'biencoder\[onnx\]'"):
        write_onnx(encoder, tmp_path / "model")


def test_what_the_exporter_cannot_express_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(tiny_model(tmp_path / "model"))

    def forward(*_: object, **__: object) -> None:
        raise NotImplementedError("no such operation")

    monkeypatch.setattr(export.PaddedModel, "forward", forward)
    with pytest.raises(UserError, match=r"--format onnx: PyTorch's exporter cannot express a bert model \("):
        write_onnx(encoder, tmp_path / "model")
