"""The service as an ASGI application: what each path answers."""

import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from biencoder.config import ServeConfig
from biencoder.config.choices import PASSAGE, PLAIN, QUERY
from biencoder.errors import UserError
from biencoder.model.encoder import Encoder
from biencoder.retrieval.text_encoder import finite
from biencoder.serving.allowance import Allowance, FullError
from biencoder.serving.answer import embeddings, json_response
from biencoder.serving.batching import Batcher
from biencoder.serving.client import read_body, while_waiting
from biencoder.serving.keys import Keys
from biencoder.serving.metrics import Metrics
from biencoder.serving.refusal import BUSY, FAILED, Refusal
from biencoder.serving.request import Rules, no_such_model, read_request

BODIES = 8  # of the largest size, that are held at once
LONGEST_WAIT = 60  # seconds that a client is asked to wait
CLIENT_LEFT = 499  # as nginx counts requests whose client did not wait; nobody receives it


class Service:
    """Answers requests with the vectors of one model.

    Args:
        encoder: makes one vector of a text.
        config: limits, and the prompt of requests that name none.
        name: of the model, as clients know it.
        keys: of the clients that are let in.

    Attributes:
        batcher: encodes; whoever runs the service enters its block.
    """

    def __init__(self, encoder: Encoder, config: ServeConfig, name: str, keys: Keys) -> None:
        self._encoder, self._config, self._keys = encoder, config, keys
        self._rules = Rules(name, encoder.dim, config.max_texts, config.max_characters, config.kind)
        self._prompts = {QUERY: encoder.settings.query_prompt, PASSAGE: encoder.settings.passage_prompt, PLAIN: ""}
        self._bodies = Allowance("bytes", BODIES * config.max_body)
        self._queue = Allowance("texts", config.max_queue)
        self._metrics = Metrics(lambda: self._queue.used)
        self.batcher = Batcher(encoder, self._metrics.encoded)
        self._started = int(time.time())
        self._paths: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/v1/embeddings": self._embed,
            "/v1/models": self._models,
            "/v1/models/{name:path}": self._model,
            "/health": self._health,
            "/metrics": self._figures,
        }
        self._app = Starlette(
            routes=[
                Route(path, answer, methods=["POST" if answer == self._embed else "GET"])
                for path, answer in self._paths.items()
            ],
            exception_handlers={
                Refusal: _refuse,
                FullError: self._ask_to_wait,
                ClientDisconnect: _nobody,
                UserError: _explain,
                HTTPException: _explain_status,
                Exception: _apologise,
            },
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and count it."""
        status, began = CLIENT_LEFT, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(path, status, time.perf_counter() - began)

    async def _embed(self, request: Request) -> Response:
        self._check_key(request)
        config = self._config
        with contextlib.ExitStack() as held:
            body = await read_body(request, config.max_body, config.timeout, held, self._bodies)
            asked = read_request(body, self._rules)
            held.enter_context(self._queue.take(len(asked.texts)))
            work = self.batcher.encode(asked.texts, self._prompts[asked.kind])
            made = await while_waiting(request, work, config.timeout)
        vectors = self._encoder.cut(finite(made.vectors, "input, text"), asked.dim)
        return embeddings(vectors, self._rules.model, made.tokens, as_base64=asked.as_base64)

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        return json_response({"object": "list", "data": [self._description]})

    async def _model(self, request: Request) -> Response:
        self._check_key(request)
        name = request.path_params["name"]
        if name != self._rules.model:
            raise no_such_model(name, self._rules.model)
        return json_response(self._description)

    @property
    def _description(self) -> dict[str, Any]:
        return {"id": self._rules.model, "object": "model", "created": self._started, "owned_by": "biencoder"}

    async def _health(self, _: Request) -> Response:
        return json_response({"status": "ok"})

    async def _figures(self, _: Request) -> Response:
        return self._metrics.response()

    def _check_key(self, request: Request) -> None:
        if not self._keys.admit(request.headers.get("Authorization", "")):
            message = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'"
            raise Refusal(401, message, code="invalid_api_key")

    async def _ask_to_wait(self, _: Request, error: Exception) -> Response:
        self._metrics.refused(str(error))
        seconds = math.ceil(self._queue.used * self.batcher.seconds_a_text)
        message = f"too many {error} wait already; come again later"
        return Refusal(429, message, BUSY, code="queue_full", retry_after=min(max(1, seconds), LONGEST_WAIT)).response()


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def _nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _explain(_: Request, error: Exception) -> Response:
    return Refusal(500, str(error), FAILED).response()


async def _explain_status(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = Refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()
    response.headers.update(error.headers or {})
    return response


async def _apologise(_: Request, __: Exception) -> Response:
    return Refusal(500, "the service failed; its log says why", FAILED).response()
