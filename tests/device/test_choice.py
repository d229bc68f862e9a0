"""Where to compute, and in which numbers."""

import pytest
import torch

from biencoder.device import choice
from biencoder.errors import UserError


def test_auto_is_bf16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for capabilities, chosen in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert choice.choose_precision("auto", cpu) == chosen
        assert choice.choose_precision("fp32", cpu) == "fp32"


def test_a_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choice.choose_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="--device cuda"):
        choice.choose_device("cuda")


def test_autocast_does_what_the_name_says() -> None:
    matrix = torch.ones(2, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with choice.autocast(name, torch.device("cpu")):
            assert (matrix @ matrix).dtype == dtype
