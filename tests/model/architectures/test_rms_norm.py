"""Root mean square normalisation in one call is that of the author."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from tiny import gradient_errors, relative_error, tiny_model, vectors_and_gradients

from biencoder import Encoder
from biencoder.model.architectures import rms_norm
from biencoder.model.packing import pack

BATCH = pack([[5 + (7 * p + n) % 150 for p in range(n)] for n in (30, 9, 4)])


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama", "mistral", "gemma", "eurobert"])
def test_vectors_and_gradients_are_the_authors(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(tiny_model(tmp_path, kind), pooling="last", normalize=False)
    for name, parameter in encoder.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    expected, want = vectors_and_gradients(encoder, BATCH)
    one_call = Mock(side_effect=torch.nn.functional.rms_norm)
    monkeypatch.setattr(rms_norm, "rms_norm", one_call)
    monkeypatch.setattr(rms_norm, "CUDA", "cpu")
    vectors, got = vectors_and_gradients(encoder, BATCH)
    assert one_call.called == (kind != "gemma")  # it multiplies by one more than its weight
    assert relative_error(vectors, expected) < 1e-6
    assert max(gradient_errors(got, want)) < 1e-5
