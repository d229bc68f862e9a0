"""Texts of all requests to vectors: one thread makes tokens, and another one encodes what has come by then.

No text waits for others: a batch begins as soon as the one before it ends, with all texts that wait at that moment.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import numpy as np

from biencoder.device.choice import facts
from biencoder.model.encoder import Encoder
from biencoder.model.packing import pack
from biencoder.model.tokens import Tokens
from biencoder.serving.turns import Job, Text, Turns

TEXTS_AT_ONCE = 64  # tokenised for one request before it is another one's turn
MEMORY = 0.1  # share of the newest batch in the mean time of a text


class Vectors(NamedTuple):
    """Vectors ``[N, D]`` float32 of N texts, and how many tokens the model read for them."""

    vectors: np.ndarray
    tokens: int


class Batcher:
    """Encodes the texts of concurrent requests together, inside of a ``with`` block.

    Args:
        encoder: makes one vector of a text. Nobody else uses it meanwhile.
        encoded: called in the encoding thread after each batch, with the number of texts and of tokens.

    Attributes:
        seconds_a_text: a mean of the last batches.
    """

    def __init__(self, encoder: Encoder, encoded: Callable[[int, int], None]) -> None:
        self._encoder, self._encoded = encoder, encoded
        self._turns, self._ready = Turns(), Future[None]()
        self._tokenizing = ThreadPoolExecutor(1, "tokenize")
        self._encoding = threading.Thread(target=self._encode_all, name="encode", daemon=True)
        self.seconds_a_text = 0.0

    def __enter__(self) -> "Batcher":
        self._encoding.start()
        self._ready.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.close()
        self._tokenizing.shutdown(cancel_futures=True)
        self._encoding.join()

    async def encode(self, texts: list[str], prompt: str) -> Vectors:
        """The vectors of texts, with ``prompt`` before each. When the caller is cancelled, the rest is not encoded."""
        tokens: list[Tokens] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = texts[start : start + TEXTS_AT_ONCE]
            loop = asyncio.get_running_loop()
            tokens += await loop.run_in_executor(self._tokenizing, self._encoder.tokenize, part, prompt)
        job = Job(tokens, self._encoder.dim)
        self._turns.add(job)
        return Vectors(await asyncio.wrap_future(job.vectors), sum(map(len, tokens)))

    def _encode_all(self) -> None:
        most_tokens = facts(self._encoder.device).largest_chunk  # more runs no faster, and lets others wait
        with self._encoder.kept_ready():
            try:
                self._encoder.embed(pack(self._encoder.tokenize(["a"])))  # lays out the weights for the whole block
            except BaseException as error:
                self._ready.set_exception(error)
                return
            self._ready.set_result(None)
            while batch := self._turns.take(most_tokens):
                self._encode(batch)

    def _encode(self, batch: list[Text]) -> None:
        began = time.perf_counter()
        try:
            vectors = self._encoder.encode_tokens([text.tokens for text in batch])
        except Exception as error:  # a request that cannot be encoded must not end the service
            for text in batch:
                text.job.fail(error)
            return
        for text, vector in zip(batch, vectors, strict=True):
            text.job.put(text.place, vector)
        seconds_a_text = (time.perf_counter() - began) / len(batch)
        self.seconds_a_text += MEMORY * (seconds_a_text - self.seconds_a_text)
        self._encoded(len(batch), sum(len(text.tokens) for text in batch))
