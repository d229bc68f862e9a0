"""ONNX files give the vectors of the models that they were made from, in ONNX Runtime and in OpenVINO."""

from pathlib import Path

import onnx
import pytest
from tiny import CONFIGS, WORDS, tiny_model

from biencoder import Encoder
from biencoder.errors import UserError
from biencoder.model.new_heads.dense import add_dense
from biencoder.model.parity import Parity, parity
from biencoder.model.runtimes import onnx_files
from biencoder.model.runtimes.onnx_files import FILE, INT8_FILE, OPSET, OnnxSession, write_onnx, write_onnx_int8
from biencoder.model.runtimes.openvino_files import OpenVinoSession
from biencoder.model.runtimes.padded_model import TEXTS, TOKENS, PaddedModel
from biencoder.model.runtimes.runtime import Session, size
from biencoder.model.runtimes.runtime_encoder import RuntimeEncoder

ARCHITECTURES = ("bert", "roberta", "modernbert", "deberta-v2", "qwen3")  # of those that we pack, and one that we pad


def exported(folder: Path, kind: str, **settings: object) -> tuple[Encoder, Path]:
    """A random model with a file made from it."""
    encoder = Encoder.load(tiny_model(folder / "model", kind), **settings)  # type: ignore[arg-type]
    encoder.adopt(encoder.settings.with_prompts("query: ", "passage: "))
    encoder.save(folder / "out")
    encoder = Encoder.load(folder / "out")
    return encoder, write_onnx(encoder, folder / "out")


def agreement(encoder: Encoder, session: Session) -> Parity:
    return parity(encoder, RuntimeEncoder(session, encoder))


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind in CONFIGS])
def test_architectures_give_the_same_vectors(kind: str, tmp_path: Path) -> None:
    encoder, file = exported(tmp_path, kind)
    for session in (OnnxSession(file), OpenVinoSession(file)):
        found = agreement(encoder, session)
        assert found.difference < 2e-6
        assert found.cosine > 0.999999


def test_pooling_normalisation_and_linear_layers_are_inside(tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path / "model"), pooling="last", normalize=False)
    add_dense(encoder, 8, list(WORDS[:50]))
    encoder.save(tmp_path / "out")
    encoder = Encoder.load(tmp_path / "out")
    file = write_onnx(encoder, tmp_path / "out")
    runs = RuntimeEncoder(OnnxSession(file), encoder)
    assert runs.encode(["a word"]).shape == (1, 8)
    assert parity(encoder, runs).difference < 5e-6
    model = onnx.load(file)
    assert [each.name for each in model.graph.output] == [TOKENS, TEXTS]
    assert {each.version for each in model.opset_import if not each.domain} == {OPSET}


def test_weights_in_int8_are_smaller_and_nearly_the_same(tmp_path: Path) -> None:
    encoder, file = exported(tmp_path, "bert", pooling="mean")
    small = write_onnx_int8(tmp_path / "out")
    assert (file, small) == (tmp_path / "out" / FILE, tmp_path / "out" / INT8_FILE)
    kinds = {tensor.data_type for tensor in onnx.load(small).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    found = agreement(encoder, OnnxSession(small))
    assert 1e-6 < found.difference < 0.1
    assert found.cosine > 0.95


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "LARGEST", 0)
    encoder, file = exported(tmp_path, "bert")
    assert sorted(path.name for path in file.parent.iterdir()) == ["model.onnx", "model.onnx_data"]
    assert size(file) == sum(path.stat().st_size for path in file.parent.iterdir())
    moved = file.parent.rename(tmp_path / "elsewhere") / file.name
    for session in (OnnxSession(moved), OpenVinoSession(moved)):
        assert agreement(encoder, session).difference < 2e-6
    moved.parent.rename(file.parent)
    assert agreement(encoder, OnnxSession(write_onnx_int8(tmp_path / "out"))).cosine > 0.95


def test_what_the_exporter_cannot_express_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(tiny_model(tmp_path / "model"))

    def forward(*_: object, **__: object) -> None:
        raise NotImplementedError("no such operation")

    monkeypatch.setattr(PaddedModel, "forward", forward)
    with pytest.raises(UserError, match=r"--format onnx: PyTorch's exporter cannot express a bert model \("):
        write_onnx(encoder, tmp_path / "model")
