"""Clients that send requests as fast as they are answered, and take little processor time for it."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

PATH = "/v1/embeddings"
HEALTH = b"GET /health HTTP/1.1\r\nHost: service\r\n\r\n"


def post(body: bytes, length: int | None = None) -> bytes:
    """A request as it goes over the wire; ``length`` is what it says of its body."""
    said = len(body) if length is None else length
    head = f"POST {PATH} HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nContent-Length: {said}\r\n\r\n"
    return head.encode() + body


def embed(**fields: Any) -> bytes:
    """A request for vectors, as it goes over the wire."""
    return post(json.dumps(fields).encode())


class Connection:
    """A connection to a service on this machine, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, request: bytes) -> None:
        """Send bytes, and wait for nothing."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        self._writer.write(request)
        await self._writer.drain()

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; status and body of the answer."""
        await self.send(request)
        assert self._reader is not None
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        body = await (self._reader.readexactly(*length) if length else self._reader.read())
        if b"connection: close" in head:
            self.cut()
        return int(head.split(b" ", 2)[1]), body

    def cut(self) -> None:
        """Close the connection, whatever is on its way."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None


@dataclass(frozen=True)
class Load:
    """What some clients saw.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: seconds of each request.
        client_share: part of one core that the clients took.
    """

    seconds: float
    latencies: list[float]
    client_share: float


def load(port: int, requests: Sequence[bytes], clients: int) -> Load:
    """Send all requests by so many clients, each of which waits for its answer before it sends the next one.

    Raises:
        RuntimeError: an answer was not 200.
    """
    return asyncio.run(_load(port, iter(requests), clients))


async def _load(port: int, requests: Iterator[bytes], clients: int) -> Load:
    latencies: list[float] = []

    async def client() -> None:
        connection = Connection(port)
        for request in requests:  # shared by all clients
            sent = time.perf_counter()
            status, body = await connection.ask(request)
            latencies.append(time.perf_counter() - sent)
            if status != 200:
                raise RuntimeError(f"{status}: {body[:500]!r}")
        connection.cut()

    began, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - began
    return Load(seconds, latencies, (time.process_time() - busy) / seconds)


def wait_until_ready(port: int, runs: Callable[[], bool]) -> None:
    """Until the service answers on /health.

    Raises:
        RuntimeError: it ended before.
    """
    while runs():
        with contextlib.suppress(OSError):
            if asyncio.run(Connection(port).ask(HEALTH))[0] == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the service on port {port} ended; its log says why")
