"""The service in a process of its own, over real sockets."""

import base64
import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from served import KEY, Served, served
from tiny import WORDS, tiny_model

from biencoder import Encoder

TEXTS = [" ".join(WORDS[i : i + 1 + i % 7]) for i in range(40)]
QUEUE = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    model = tiny_model(folder / "model")
    prompts = {"prompts": {"query": "word7 word8 ", "document": "word9 "}}
    (model / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(folder / "model", device="cpu")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Served]:
    limits = ("--max-queue", str(QUEUE), "--max-texts", "50", "--max-body", "1MB")
    with served(folder / "model", folder / "hold", *limits) as running:
        yield running


@contextlib.contextmanager
def held(service: Served) -> Iterator[None]:
    """Within the block, the service encodes nothing."""
    service.hold.touch()
    try:
        yield
    finally:
        service.hold.unlink()


def until(fact: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def vectors(answer: httpx2.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]], np.float32)


def test_the_vectors_are_those_of_encode(service: Served, encoder: Encoder) -> None:
    np.testing.assert_array_equal(vectors(service.post(input=TEXTS)), encoder.encode_passages(TEXTS))
    np.testing.assert_array_equal(vectors(service.post(input=TEXTS[3])), encoder.encode_passages(TEXTS[3:4]))
    for kind, wanted in {
        "query": encoder.encode_queries(TEXTS),
        "document": encoder.encode_passages(TEXTS),
        "passage": encoder.encode_passages(TEXTS),
        "plain": encoder.encode(TEXTS),
    }.items():
        np.testing.assert_array_equal(vectors(service.post(input=TEXTS, input_type=kind)), wanted)


def test_an_answer_has_what_clients_of_openai_read(service: Served, encoder: Encoder) -> None:
    answer = service.post(input=TEXTS, model="model", encoding_format="base64", dimensions=8, user="somebody").json()
    assert (answer["object"], answer["model"]) == ("list", "model")
    assert [(item["object"], item["index"]) for item in answer["data"]] == [("embedding", i) for i in range(40)]
    short = np.array([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer["data"]])
    np.testing.assert_array_equal(short, encoder.cut(encoder.encode_passages(TEXTS), 8))
    tokens = sum(map(len, encoder.tokenize(TEXTS, encoder.settings.passage_prompt)))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_requests_that_wait_share_a_batch_and_get_their_own_vectors(service: Served, encoder: Encoder) -> None:
    with ThreadPoolExecutor(20) as clients:
        before = service.figure("biencoder_batch_texts_count")
        with held(service):
            answers = [clients.submit(service.post, input=TEXTS[i : i + 2]) for i in range(20)]
            until(lambda: service.figure("biencoder_queue_texts") == 40)
        found = [vectors(answer.result()) for answer in answers]
    assert service.figure("biencoder_batch_texts_count") - before <= 3  # the first to come has one of its own
    for i, each in enumerate(found):
        np.testing.assert_allclose(each, encoder.encode_passages(TEXTS[i : i + 2]), atol=1e-6)


def test_a_full_queue_refuses_and_says_when_to_come_again(service: Served) -> None:
    with ThreadPoolExecutor(2) as clients, held(service):
        waiting = clients.submit(service.post, input=TEXTS)
        until(lambda: service.figure("biencoder_queue_texts") == len(TEXTS))
        refused = service.post(input=TEXTS[: QUEUE - len(TEXTS) + 1])
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        fits = clients.submit(service.post, input=TEXTS[: QUEUE - len(TEXTS)])
        until(lambda: service.figure("biencoder_queue_texts") == QUEUE)
        service.hold.rename(service.hold.with_name("later"))
        assert (len(vectors(waiting.result())), len(vectors(fits.result()))) == (40, 20)
        service.hold.touch()
    assert service.figure('biencoder_refusals_total{full="texts"}') == 1


def test_texts_of_a_client_that_left_are_not_encoded(service: Served) -> None:
    before = service.figure("biencoder_texts_total")
    host, _, port = service.url.removeprefix("http://").partition(":")
    with ThreadPoolExecutor(1) as clients, held(service):
        first = clients.submit(service.post, input="word1")
        until(lambda: service.figure("biencoder_queue_texts") == 1)
        body = json.dumps({"input": TEXTS}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}"
        with socket.create_connection((host, int(port))) as leaving:
            leaving.sendall(head.encode() + b"\r\n\r\n" + body)
            until(lambda: service.figure("biencoder_queue_texts") == 41)
        until(lambda: service.figure("biencoder_queue_texts") == 1)
        service.hold.rename(service.hold.with_name("later"))
        assert len(vectors(first.result())) == 1
        service.hold.touch()
    assert service.figure("biencoder_texts_total") - before == 1
    assert service.figure('biencoder_requests_total{path="/v1/embeddings",status="499"}') == 1


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_beyond_the_limit_is_refused(declared: bool, service: Served) -> None:
    body = json.dumps({"input": ["a" * 90_000] * 12}).encode()
    with service.client() as client:
        answer = client.post("/v1/embeddings", content=body if declared else iter([body[:600_000], body[600_000:]]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("key", ["", "another", KEY[:-1], f"{KEY}x"])
def test_without_the_key_there_is_no_model(key: str, service: Served) -> None:
    with service.client(key) as client:
        for answer in (client.get("/v1/models"), client.post("/v1/embeddings", json={"input": "word1"})):
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.get("/health").json() == {"status": "ok"}


def test_the_model_is_listed(service: Served) -> None:
    with service.client() as client:
        (listed,) = client.get("/v1/models").json()["data"]
        assert (listed["id"], client.get("/v1/models/model").json()) == ("model", listed)
        assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
        assert client.get("/v1/nothing").json()["error"]["message"] == "GET /v1/nothing: Not Found"
        assert client.get("/v1/embeddings").headers["Allow"] == "POST"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_after_what_it_accepted(number: signal.Signals, folder: Path) -> None:
    with served(folder / "model", folder / "hold-the-last") as service, ThreadPoolExecutor(1) as clients:
        with held(service):
            accepted = clients.submit(service.post, input=TEXTS)
            until(lambda: service.figure("biencoder_queue_texts") == len(TEXTS))
            service.process.send_signal(number)
            until(lambda: is_closed(service))
        assert len(vectors(accepted.result())) == len(TEXTS)
        assert service.process.wait(10) == 0
        assert service.process.communicate()[1] == ""


def is_closed(service: Served) -> bool:
    try:
        service.figure("biencoder_texts_total")
    except httpx2.TransportError:
        return True
    return False


def test_a_second_sigint_ends_it_at_once(folder: Path) -> None:
    hold = folder / "hold-the-first"
    with served(folder / "model", hold) as service, held(service), ThreadPoolExecutor(1) as clients:
        accepted = clients.submit(service.post, input=TEXTS)
        until(lambda: service.figure("biencoder_queue_texts") == len(TEXTS))
        service.process.send_signal(signal.SIGINT)
        until(lambda: is_closed(service))
        service.process.send_signal(signal.SIGINT)
        assert accepted.result().status_code == 500
        hold.rename(hold.with_name("later"))  # the batch under way ends
        assert service.process.wait(10) == 130
        hold.touch()
