"""What PyTorch and Linux say of the processor."""

import sys
from pathlib import Path

import pytest
import torch

from biencoder.device import processor

CPUINFO = """processor	: 0
model name	: Some Processor
flags		: fpu fma avx2 avx512f avx512bw avx512vl avx512_bf16
bugs		: none
"""


def test_the_flags_of_linux_have_the_names_of_pytorch(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    found = processor.linux_features(tmp_path / "cpuinfo")
    assert {name for name, there in found.items() if there} == {"avx2", "fma3", "avx512_bw", "avx512_vl", "avx512_bf16"}
    assert processor.linux_features(tmp_path / "nowhere") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says it in a file")
def test_both_say_the_same_of_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    said = processor.features()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    by_linux = processor.features()
    assert by_linux
    for name, there in by_linux.items():
        assert bool(said.get(name, False)) == there
