"""The other end of a request: what it sends, and whether it still waits."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from biencoder.serving.allowance import Allowance
from biencoder.serving.refusal import FAILED, Refusal

Made = TypeVar("Made")


async def read_body(request: Request, most: int, seconds: float, held: contextlib.ExitStack, room: Allowance) -> bytes:
    """The body of a request.

    Args:
        request: whose body nobody has read.
        most: bytes that it may have.
        seconds: in which it must arrive.
        held: gives the room back when it is left.
        room: bytes for all bodies.

    Raises:
        Refusal: it is too large or comes too slowly.
        FullError: there is no room for it.
        ClientDisconnect: the client left.
    """
    too_large = Refusal(413, f"the body is larger than {most} bytes; send it in parts", code="body_too_large")
    declared = request.headers.get("Content-Length", "0")
    if declared.isdecimal() and int(declared) > most:
        raise too_large

    async def read() -> bytes:
        body = bytearray()
        async for part in request.stream():
            held.enter_context(room.take(len(part)))
            body += part
            if len(body) > most:
                raise too_large
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), seconds)
    except asyncio.TimeoutError:
        raise Refusal(408, f"the request did not arrive in {seconds:g} s", code="timeout") from None


async def while_waiting(request: Request, work: Coroutine[Any, Any, Made], seconds: float) -> Made:
    """What ``work`` gives. It is cancelled if the client leaves, or when its time is over.

    Raises:
        Refusal: it took longer.
        ClientDisconnect: the client left.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_leaving(request))
    try:
        done, _ = await asyncio.wait((working, leaving), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working in done:
            return working.result()
        if leaving in done:
            raise ClientDisconnect
        raise Refusal(503, f"no vectors in {seconds:g} s", FAILED, code="timeout", retry_after=1)
    finally:
        working.cancel()
        leaving.cancel()


async def _leaving(request: Request) -> None:
    """Ends when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
