import json
import threading
import time
from email.utils import formatdate

import pytest
from language_model import BREAK, CUT, STALL, TRICKLE, LanguageModel, Reply, says

from biencoder.errors import UserError
from biencoder.pairs.asking import endpoint
from biencoder.pairs.asking.endpoint import ATTEMPTS, CallCancelledError, Endpoint, UnusableAnswerError

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BACKOFF", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in endpoint.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("BIENCODER_API_KEY", f" {KEY}\n")
    with LanguageModel(lambda content, _: says(content.upper())) as server:
        assert Endpoint(server.url + "/", "llama", 5).ask("héllo") == "HÉLLO"
        assert Endpoint(server.url + "/chat/completions", "llama", 5).ask("x") == "X"
        monkeypatch.delenv("BIENCODER_API_KEY")
        Endpoint(server.url, "llama", 5).ask("x")
        monkeypatch.delenv("OPENAI_API_KEY")
        Endpoint(server.url, "llama", 5).ask("x")
    assert server.requests[0]["path"] == "/v1/chat/completions"
    assert server.requests[0]["model"] == "llama"
    assert server.requests[0]["messages"] == [{"role": "user", "content": "héllo"}]
    assert server.keys == [f"Bearer {KEY}", f"Bearer {KEY}", "Bearer other", None]


@pytest.mark.parametrize(
    "trouble",
    [
        Reply(status=500), Reply(b"overloaded", 503), Reply(status=429), Reply(status=408), Reply(trouble=BREAK),
        Reply(trouble=STALL), Reply(says("half").body, trouble=CUT), Reply(says("slow").body, trouble=TRICKLE),
    ],
    ids=["500", "503", "429", "408", "break", "stall", "cut", "trickle"],
)  # fmt: skip
def test_what_may_pass_is_tried_again(trouble: Reply) -> None:
    with LanguageModel(lambda _, times: says("at last") if times == 2 else trouble) as server:
        assert Endpoint(server.url, "m", 0.3).ask("x") == "at last"
        assert server.calls["x"] == 3


class Waits(threading.Event):
    """Notes how long it is waited for, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.seconds.append(timeout)
        return False


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(as_date: bool) -> None:
    def answer(_: str, times: int) -> Reply:
        value = formatdate(time.time() + 60, usegmt=True) if as_date else "60"
        return says("yes") if times else Reply(status=429, headers={"Retry-After": value})

    with LanguageModel(answer) as server:
        patient = Endpoint(server.url, "m", 5)
        patient.stop = waits = Waits()
        assert patient.ask("x") == "yes"
    (seconds,) = waits.seconds
    assert 30 < seconds <= 60  # a date has whole seconds, and the request takes some


def test_an_endpoint_that_wants_hours_of_rest_is_not_waited_for() -> None:
    with LanguageModel(lambda *_: Reply(b"quota", 429, {"Retry-After": "7200"})) as server:
        with pytest.raises(UserError, match="429 Too Many Requests: quota; it asks you to wait 7200 s"):
            Endpoint(server.url, "m", 5).ask("x")
        assert server.calls["x"] == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(status=500), "no answer in 6 attempts; the last: 500"),
        (Reply(trouble=BREAK), "no answer in 6 attempts"),
        (Reply(trouble=STALL), r"no answer in 6 attempts; the last: no answer in 0.2 s \(--request-timeout\)"),
    ],
    ids=["500", "break", "stall"],
)
def test_it_ends_after_so_many_attempts(reply: Reply, message: str) -> None:
    with LanguageModel(lambda *_: reply) as server:
        with pytest.raises(UserError, match=message):
            Endpoint(server.url, "m", 0.2).ask("x")
        assert server.calls["x"] == ATTEMPTS


def test_nobody_there() -> None:
    with LanguageModel(lambda *_: says("x")) as server:
        url = server.url
    with pytest.raises(UserError, match=rf"--generator {url}: no answer in 6 attempts; the last: .*refused"):
        Endpoint(url, "m", 1).ask("x")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            Reply(b"bad key", 401),
            "401 Unauthorized: bad key; biencoder reads the API key from BIENCODER_API_KEY or OPENAI_API",
        ),
        (Reply(status=403), "403 Forbidden; biencoder reads the API key from"),
        (Reply(b"no model", 404), "404 Not Found: no model; the address usually ends in /v1"),
        (Reply(status=307, headers={"Location": "http://127.0.0.1:1/v1/chat/completions"}), "307 Temporary Redirect"),
        (Reply(status=302, headers={"Location": "http://127.0.0.1:1/"}), "302 Found"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else "",
)
def test_what_no_further_call_will_mend_ends_at_once(reply: Reply, message: str) -> None:
    with LanguageModel(lambda *_: reply) as server:
        with pytest.raises(UserError, match=f"--generator {server.url}: {message}"):
            Endpoint(server.url, "m", 5).ask("x")
        assert server.calls["x"] == 1


@pytest.mark.parametrize(
    ("reply", "kind", "paid"),
    [
        (Reply(b"<html>hello</html>"), "not JSON", True),
        (Reply(b""), "not JSON", True),
        (Reply(b'{"error": "busy"}'), "no choices", True),
        (Reply(b'{"choices": []}'), "no choices", True),
        (Reply(b"[]"), "no choices", True),
        (says(None), "empty", True),
        (says(" \n"), "empty", True),
        (says(7), "empty", True),
        (Reply(b"too long", 400), "refused with 400", False),
        (Reply(status=422), "refused with 422", False),
    ],
)
def test_nonsense_has_a_name(reply: Reply, kind: str, paid: bool) -> None:
    with LanguageModel(lambda *_: reply) as server, pytest.raises(UnusableAnswerError) as caught:
        Endpoint(server.url, "m", 5).ask("x")
    assert (str(caught.value), caught.value.paid) == (kind, paid)
    assert server.calls["x"] == 1


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_key_that_the_server_repeats_is_struck_out(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    body = json.dumps({"error": f"wrong key {KEY}"}).encode()
    with (
        LanguageModel(lambda *_: Reply(body, status)) as server,
        pytest.raises((UserError, UnusableAnswerError)) as caught,
    ):
        Endpoint(server.url, "m", 5).ask("x")
    shown = str(caught.value) + getattr(caught.value, "detail", "")
    assert "wrong key ***" in shown
    assert KEY not in shown
    with LanguageModel(lambda *_: says(f"{KEY}?")) as server:
        assert Endpoint(server.url, "m", 5).ask("x") == "***?"


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\nsecret")
    with pytest.raises(UserError, match=r"^OPENAI_API_KEY: the API key holds characters that a key cannot have$"):
        Endpoint("http://localhost:1/v1", "m", 5)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://", "http://x:99999999/", "http://a b/v1"])
def test_no_address(url: str) -> None:
    with pytest.raises(UserError, match=r"is not an address such as http://localhost:8000/v1"):
        Endpoint(url, "m", 5)


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "https://host/v1?key=secret"])
def test_secrets_in_an_address_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UserError) as caught:
        Endpoint(url, "m", 5)
    assert "secret" not in str(caught.value)


def test_a_stopped_run_makes_no_further_attempt() -> None:
    with LanguageModel(lambda *_: Reply(status=500)) as server:
        asked = Endpoint(server.url, "m", 5)
        asked.stop.set()
        with pytest.raises(CallCancelledError):
            asked.ask("x")
        assert not server.calls
