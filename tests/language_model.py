"""A small HTTP server that stands for a language model: it answers, fails, stalls and breaks off as a test says."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np
import torch

from biencoder.model.representations.ragged import AnyVectors

STALL = "stall"  # answers nothing for longer than any test waits
BREAK = "break"  # closes the connection without a word
CUT = "cut"  # says how long the answer is and sends half of it
TRICKLE = "trickle"  # sends a byte now and then


@dataclass
class Reply:
    """An HTTP response, or one of the ways not to give one."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    trouble: str = ""


def says(text: Any) -> Reply:
    """A chat completion."""
    return Reply(json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode())


class LanguageModel:
    """Serves ``answer(content, times)`` for each message; ``times`` counts earlier calls with the same message."""

    def __init__(self, answer: Callable[[str, int], Reply]) -> None:
        self.calls: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        self._answer, self._lock, self._closing = answer, threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "LanguageModel":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                content = request["messages"][0]["content"]
                with served._lock:
                    served.requests.append(request | {"path": self.path})
                    served.keys.append(self.headers.get("Authorization"))
                    times = served.calls[content]
                    served.calls[content] += 1
                    served.at_once += 1
                    served.most_at_once = max(served.most_at_once, served.at_once)
                try:
                    self._send(served._answer(content, times))
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with served._lock:
                        served.at_once -= 1

            def _send(self, reply: Reply) -> None:
                if reply.trouble == STALL:
                    served._closing.wait(20)
                if reply.trouble in (STALL, BREAK):
                    self.connection.close()
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                if reply.trouble == TRICKLE:
                    for place in range(len(reply.body)):
                        self.wfile.write(reply.body[place : place + 1])
                        time.sleep(0.05)
                    return
                self.wfile.write(reply.body[: len(reply.body) // 2] if reply.trouble == CUT else reply.body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


class BagOfWords:
    """An encoder that counts the words of a vocabulary: vectors of length 1."""

    fingerprint = "words"
    kind = "dense"
    words: Sequence[str] = ()
    device = torch.device("cpu")

    def __init__(self, words: str) -> None:
        self._places = {word: place for place, word in enumerate(words.split())}
        self.dim = self.text_size = len(self._places)
        self.no_texts = np.empty((0, self.dim), np.float32)

    def encode(self, texts: Any, prompt: str = "", progress: Any = None) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            for word in (prompt + text).lower().replace("?", " ").replace(".", " ").split():
                if word in self._places:
                    vectors[row, self._places[word]] += 1
            if progress is not None:
                progress(row + 1)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        return vectors

    def represent_queries(self, texts: Any, progress: Any = None, prompt: str | None = None) -> np.ndarray:
        return self.encode(texts, prompt or "", progress)

    def represent_passages(self, texts: Any, progress: Any = None, prompt: str | None = None) -> np.ndarray:
        return self.encode(texts, prompt or "", progress)

    def cut(self, vectors: AnyVectors, dim: int) -> AnyVectors:
        raise NotImplementedError
