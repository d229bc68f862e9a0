"""Which compiled library is called, and when none is."""

import logging

import pytest
from native_kernels import KINDS, needs_kernels

from biencoder.model.kernels import library as native


@needs_kernels
def test_the_fastest_that_the_processor_can_run_is_called() -> None:
    assert native.kind() == KINDS[0]
    assert native.kernels() is native._library(KINDS[0])


@needs_kernels
def test_none_is_called_inside_of_the_block_that_says_so() -> None:
    with native.without_kernels():
        assert native.kernels() is None
        assert native.kind() is None
    assert native.kernels() is not None


def test_a_processor_without_the_instructions_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "features", dict)
    assert all(native._library.__wrapped__(name) is None for name in native.NEEDS)


@needs_kernels
@pytest.mark.parametrize(
    ("limit", "left"),
    [
        ("AVX512_CORE_BF16", {"avx512_bf16", "avx2"}),
        ("avx2", {"avx2"}),
        ("SSE41", set()),
        ("DEFAULT", set(native.NEEDS)),
    ],
)
def test_what_onednn_is_to_do_without_the_kernels_do_without(
    limit: str, left: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.LIMIT, limit)
    assert {name for name in native.NEEDS if native._library.__wrapped__(name) is not None} == left & set(KINDS)


def test_an_installation_without_a_compiler_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "find_spec", lambda _: None)
    assert all(native._library.__wrapped__(name) is None for name in native.NEEDS)


@needs_kernels
def test_a_library_that_the_loader_refuses_is_not_called(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(_: str) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(logging.getLogger("biencoder"), "propagate", True)  # the command line turns it off
    monkeypatch.setattr("ctypes.CDLL", refused)
    assert native._library.__wrapped__(KINDS[0]) is None
    assert "the compiled kernels cannot be loaded (libgomp.so.1: cannot open shared object file)" in caplog.text
