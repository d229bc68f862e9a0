"""The service behind a socket, until a signal ends it."""

import contextlib
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from biencoder.errors import UserError
from biencoder.serving.service import Service
from biencoder.terminal import LogHandler

KEEP_ALIVE = 75  # seconds that an idle connection stays open: longer than proxies and clients reuse one
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody can connect to yet.

    Raises:
        UserError: the address is none of this machine, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except socket.gaierror:
        raise UserError(f"--host {host}: is not an address of this machine") from None
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}; name another one") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """``127.0.0.1:8000``, or ``[::1]:8000``."""
    host, port, *_ = bound.getsockname()
    return f"[{host}]:{port}" if bound.family == socket.AF_INET6 else f"{host}:{port}"


def serve(service: Service, bound: socket.socket, *, timeout: float, ready: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or SIGINT comes, and then those that were accepted before.

    Args:
        service: what answers.
        bound: a socket of :func:`bind`; closed at the end.
        timeout: seconds that the accepted requests may still take.
        ready: called when clients can connect.

    Raises:
        KeyboardInterrupt: a second SIGINT came, and not all requests were answered.
    """
    logger = logging.getLogger("uvicorn")
    logger.handlers, logger.propagate = [LogHandler()], False
    logger.setLevel(logging.ERROR)
    config = uvicorn.Config(
        service,
        http="h11",  # it limits the size of headers; httptools does not
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(timeout),
    )
    server = _Server(config, ready)
    with service.batcher:
        server.run([bound])
    if server.force_exit:
        raise KeyboardInterrupt


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready, and for which a signal is no error."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signals are not raised again at the end, and one that is ignored stays so."""
        before = {each: signal.getsignal(each) for each in SIGNALS}
        for each in SIGNALS:
            if before[each] is not signal.SIG_IGN:
                signal.signal(each, self.handle_exit)
        try:
            yield
        finally:
            for each in SIGNALS:
                signal.signal(each, before[each])
