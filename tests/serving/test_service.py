"""The service in this process, where its encoder can be slow, broken or damaged."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from tiny import tiny_model

from biencoder import Encoder
from biencoder.config import ServeConfig
from biencoder.serving.keys import Keys
from biencoder.serving.service import Service

Ask = Callable[[httpx2.AsyncClient], Awaitable[Any]]


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return Encoder.load(tiny_model(tmp_path / "model"), device="cpu")


def asked(encoder: Encoder, ask: Ask, **options: Any) -> Any:
    """What ``ask`` gets from a service with these options."""
    service = Service(encoder, ServeConfig(model="m", **options), "m", Keys([]))

    async def talk() -> Any:
        transport = httpx2.ASGITransport(app=service, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
            return await ask(client)

    with service.batcher:
        return asyncio.run(talk())


async def embed(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    return await client.post("/v1/embeddings", json=fields)


def test_who_waits_too_long_is_told_so(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    go, encode = threading.Event(), encoder.encode_tokens

    def held(*words: Any) -> np.ndarray:
        go.wait(10)
        return encode(*words)

    monkeypatch.setattr(encoder, "encode_tokens", held)

    async def ask(client: httpx2.AsyncClient) -> tuple[httpx2.Response, str, httpx2.Response]:
        late = await embed(client, input="word1")
        figures = (await client.get("/metrics")).text
        go.set()
        return late, figures, await embed(client, input="word1")

    late, figures, next_one = asked(encoder, ask, timeout=0.3)
    assert (late.status_code, late.json()["error"]["code"]) == (503, "timeout")
    assert late.headers["Retry-After"] == "1"
    assert "\nbiencoder_queue_texts 0.0\n" in figures
    assert next_one.status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(encoder: Encoder) -> None:
    async def slowly() -> Any:
        yield b'{"input"'
        await asyncio.sleep(10)

    answer = asked(encoder, lambda client: client.post("/v1/embeddings", content=slowly()), timeout=0.3)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "timeout")


def test_vectors_that_are_not_finite_are_an_error(encoder: Encoder) -> None:
    encoder.backbone.get_input_embeddings().weight.data[5:] = float("nan")
    answer = asked(encoder, lambda client: embed(client, input="word3"))
    assert answer.status_code == 500
    assert answer.json()["error"]["message"].startswith("input, text 1: the vector has values that are not finite")


def test_a_batch_that_fails_fails_alone(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = encoder.encode_tokens

    def fails(_: Any) -> np.ndarray:
        monkeypatch.setattr(encoder, "encode_tokens", encode)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(encoder, "encode_tokens", fails)

    async def ask(client: httpx2.AsyncClient) -> list[httpx2.Response]:
        return [await embed(client, input=["word1", "word2"]) for _ in range(2)]

    first, second = asked(encoder, ask)
    assert (first.status_code, first.json()["error"]["type"]) == (500, "server_error")
    assert "memory" not in first.text
    assert second.status_code == 200


def test_bodies_have_a_limit_together(encoder: Encoder) -> None:
    arrived = asyncio.Event()

    async def much() -> Any:
        yield b" " * 999_000
        await arrived.wait()

    async def ask(client: httpx2.AsyncClient) -> list[httpx2.Response]:
        posts = [asyncio.ensure_future(client.post("/v1/embeddings", content=much())) for _ in range(9)]
        await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
        arrived.set()
        return list(await asyncio.gather(*posts))

    statuses = [answer.status_code for answer in asked(encoder, ask, max_body=1_000_000)]
    assert sorted(statuses) == [400] * 8 + [429]


def test_the_model_that_cannot_start_says_why(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(encoder, "embed", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        asked(encoder, lambda client: client.get("/health"))
