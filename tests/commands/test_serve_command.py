import importlib.util
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_lines import Refused, with_flag
from tiny import WORDS

from biencoder import Encoder
from biencoder.cli import main
from biencoder.model.new_heads.combined import make_combined
from biencoder.serving.keys import VARIABLE


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The services that were to run; each is over at once."""
    services: list[Any] = []

    def serve(service: Any, bound: socket.socket, *, timeout: float, ready: Callable[[], None]) -> None:
        assert timeout == 60
        assert bound.getsockname()[1] > 0
        services.append(service)
        ready()

    monkeypatch.setattr("biencoder.serving.server.serve", serve)
    monkeypatch.delenv(VARIABLE, raising=False)
    return services


@pytest.mark.usefixtures("place")
def test_the_command_says_where_the_model_is(served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(with_flag("serve", "--dim", "8")) == 0
    out, err = capsys.readouterr()
    assert out.startswith("model: 8 dimensions at http://127.0.0.1:")
    assert err == ""
    assert main(with_flag("serve", "--served-model-name", "router help")) == 0
    assert capsys.readouterr()[0].startswith("router help: 32 dimensions at ")
    assert len(served) == 2


@pytest.mark.usefixtures("place", "served")
def test_open_doors_are_pointed_out(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def warnings() -> list[str]:
        caplog.clear()
        assert main(with_flag("serve", "--host", "0.0.0.0")) == 0
        return [record.message for record in caplog.records if record.levelno == logging.WARNING]

    monkeypatch.setattr("biencoder.cli._start_logging", lambda: None)
    (warning,) = warnings()
    assert f"can use the model: set {VARIABLE}" in warning
    monkeypatch.setenv(VARIABLE, "a-key")
    assert warnings() == []


def test_other_kinds_of_models_are_refused(place: Path, served: list[Any], refused: Refused) -> None:
    encoder = Encoder.load("model")
    make_combined(encoder, "dense,sparse", None, list(WORDS[:12]), list(WORDS[12:24]))
    encoder.save(place / "both")
    both = with_flag("serve", "--model", "both")
    refused(both, "--model both: its head is dense,sparse, and only dense is served; add --head dense")
    refused([*both, "--head", "sparse"], "--model both: its head is sparse, and only dense is served")
    assert main([*both, "--head", "dense"]) == 0
    assert len(served) == 1


def test_a_port_that_is_taken_is_refused(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        refused(
            with_flag("serve", "--port", port), f"--host 127.0.0.1 --port {port}: Address already in use; name another"
        )


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--host", "no.such.host.invalid", "--host no.such.host.invalid: is not an address of this machine"),
        ("--port", "70000", "--port must be at most 65535, not 70000"),
        ("--max-queue", "100", "--max-queue 100 has no room for a request of 2048 texts; lower --max-texts"),
        ("--max-body", "8", "--max-body: '8' is less than 1 MB"),
        ("--api-key-file", "no-such-file", "--api-key-file no-such-file: No such file or directory"),
        ("--model", "nowhere", "--model nowhere: no such folder"),
    ],
)
def test_what_cannot_be_served_is_refused(flag: str, value: str, message: str, refused: Refused) -> None:
    refused(with_flag("serve", flag, value), message)


def test_the_extra_is_named(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    refused(with_flag("serve", "--port", "0"), "needs the package uvicorn", "pip install biencoder[serve]")
