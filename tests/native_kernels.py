"""What tests of the compiled kernels share: all of those that this processor can run, and sizes that they take."""

from typing import Any

import pytest

from biencoder.model.kernels import library as native

NATIVE_SIZES: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96}  # heads of 32
KINDS = [name for name in native.NEEDS if native._library(name) is not None]

needs_kernels = pytest.mark.skipif(not KINDS, reason="no kernels: built without a compiler, or for other processors")


@pytest.fixture(params=KINDS or ["none"])
def kernels_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs with each of the libraries in turn."""
    name: str = request.param
    monkeypatch.setattr(native, "_loaded", lambda: native._library(name))
    return name
