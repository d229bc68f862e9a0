"""What a machine has, and what to do about what it lacks."""

import importlib.metadata
from typing import Any

import pytest
import torch

from biencoder.cli import main
from biencoder.commands import doctor
from biencoder.model.kernels import library


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The lines of the table by their first cell, and the verdict under the empty one."""
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line.split("  ")[0]: " ".join(line.split("  ")[1:]).strip() for line in lines if line} | {"": lines[-1]}


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys)
    assert found["torch"] == torch.__version__
    assert found["extra: demo"] == "installed"
    kind = library.kind()
    assert found["kernels"].startswith("none" if kind is None else f"{kind}; vectors differ from PyTorch's by at most ")
    assert set(found) > {"system", "python", "cores", "memory", "disk", "faiss-cpu", "transformers", "extra: wandb"}
    assert not {"extra: test", "extra: bench", "pytest"} & set(found)


@pytest.mark.parametrize(
    ("name", "instead", "row", "advice"),
    [
        ("faiss-cpu", None, "missing", "pip install 'faiss-cpu>="),
        ("rich", "12.9.1", "12.9.1", "pip install 'rich>=13'"),
        ("peft", None, "", ""),
    ],
)
def test_a_package_that_is_missing_or_too_old(
    name: str,
    instead: str | None,
    row: str,
    advice: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(asked: str) -> str:
        if asked != name:
            return importlib.metadata.version(asked)
        if instead is None:
            raise importlib.metadata.PackageNotFoundError(asked)
        return instead

    monkeypatch.setattr(doctor, "version", version)
    found = told(capsys)
    if name == "peft":
        assert found["extra: lora"] == "not installed (pip install 'biencoder[lora]')"
        return
    assert found[name].startswith(row)
    assert advice in found[name]
    assert name in found[""].removeprefix("To look at: ").split(", ")


@pytest.mark.parametrize(
    ("has", "kind", "said", "advice"),
    [
        ({}, None, "none for this processor", ""),
        ({"avx2": True, "fma3": True}, None, "none, though the processor has avx2", "install a C++ compiler"),
        ({"avx2": True, "fma3": True}, "avx2", "avx2; vectors differ from PyTorch's by at most 1e+00", "please report"),
    ],
)
def test_kernels_that_are_missing_or_wrong(
    has: dict[str, Any],
    kind: str | None,
    said: str,
    advice: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("biencoder.device.processor.features", lambda: has)
    monkeypatch.setattr(library, "kind", lambda: kind)
    monkeypatch.setattr(doctor, "_difference_to_pytorch", lambda: 1.0)
    found = told(capsys)
    assert said in found["kernels"]
    assert advice in found["kernels"]
    assert ("kernels" in found[""]) is bool(advice)


def test_a_card(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        name, total_memory, major = "NVIDIA T4", 16_000_000_000, 7

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    assert told(capsys)["GPU 0"] == "NVIDIA T4, 16 GB; --precision auto is fp16"
