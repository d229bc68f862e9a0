"""OpenVINO's files give the vectors of the model that they were made from."""

from pathlib import Path

import numpy as np
from tiny import WORDS, random_texts, tiny_model

from biencoder import Encoder
from biencoder.model.new_heads.dense import add_dense
from biencoder.model.runtimes.openvino_files import (
    FILE,
    INT8_FILE,
    OpenVinoSession,
    write_openvino,
    write_openvino_int8,
)
from biencoder.model.runtimes.padded_model import TEXTS, TOKENS
from biencoder.model.runtimes.runtime import size
from biencoder.model.runtimes.runtime_encoder import RuntimeEncoder


def test_both_files_give_the_vectors_of_the_model(tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path / "model", hidden_size=64), pooling="mean")
    add_dense(encoder, 24, list(WORDS[:50]))
    out, texts = tmp_path / "out", random_texts(20)
    encoder.save(out)
    encoder = Encoder.load(out)
    file = write_openvino(encoder, out)
    small = write_openvino_int8(out)
    assert (file, small) == (out / FILE, out / INT8_FILE)
    assert not list(out.rglob("*.onnx")), "the way there is cleared away"
    want = encoder.encode(texts)
    np.testing.assert_allclose(RuntimeEncoder(OpenVinoSession(file), encoder).encode(texts), want, atol=1e-6)
    rough = RuntimeEncoder(OpenVinoSession(small), encoder).encode(texts)
    assert rough.shape == (20, 24)
    assert 1e-6 < np.abs(rough - want).max() < 0.1
    assert (rough * want).sum(axis=1).min() > 0.98
    assert size(small) < size(file)
    check_interface(file)


def check_interface(file: Path) -> None:
    """The names that other libraries know, any size, and no trace of where the file was made."""
    import openvino
    from openvino.tools.ovc import telemetry

    model = openvino.Core().read_model(file)
    assert [each.any_name for each in model.inputs] == ["input_ids", "attention_mask"]
    assert [each.any_name for each in model.outputs] == [TOKENS, TEXTS]
    assert all(each.partial_shape.is_dynamic for each in model.inputs)
    assert str(file.parent.parent) not in file.read_text()
    assert type(telemetry).__module__.endswith("telemetry_stub"), "it would report to its makers"
