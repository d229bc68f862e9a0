"""Where to compute, and in which numbers."""

import pytest
import torch

from biencoder.device import choice, cpu
from biencoder.errors import UserError


def test_auto_is_bf16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    for capabilities, chosen in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")):
        monkeypatch.setattr(cpu, "features", lambda found=capabilities: found)
        assert choice.choose_precision("auto", device) == chosen
        assert choice.choose_precision("fp32", device) == "fp32"


def test_auto_on_a_gpu_is_bf16_or_fp16_on_older_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for has_bf16, chosen in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda found=has_bf16, **_: found)
        assert choice.choose_precision("auto", gpu) == chosen
    assert choice.choose_precision("fp16", gpu) == "fp16"


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match="--precision fp16: a CPU computes it no faster than fp32"):
        choice.choose_precision("fp16", torch.device("cpu"))


def test_a_model_too_large_for_the_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(UserError, match=r"a-model: its weights take 0\.0 GB, and there is less free memory on cpu"):
        choice.placed(torch.nn.Linear(2, 2), torch.device("cpu"), "a-model")


def test_a_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choice.choose_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="--device cuda"):
        choice.choose_device("cuda")


def test_autocast_does_what_the_name_says() -> None:
    matrix = torch.ones(2, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with choice.autocast(name, torch.device("cpu")):
            assert (matrix @ matrix).dtype == dtype
