"""Right requests and broken ones, all at once and for a long time: what is answered, and what the service keeps.

Run by ``python -m benchmarks.serve --endurance SECONDS``. Every right answer is compared with `biencoder encode`'s
vectors. Other clients cut their connections, send what is no request, send megabytes, and more than the queue holds.
"""

import argparse
import asyncio
import base64
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from benchmarks.http_load import Connection, embed, post
from benchmarks.serve import SERVE, running
from benchmarks.status import memory
from benchmarks.workload import ROOT, model_folder, print_table

TEXTS = 200
LETTERS = 600  # of a text, so that there are many requests
LIMITS = ["--max-texts", "64", "--max-queue", "256", "--max-body", "2MB", "--timeout", "30"]
TOLERANCE = 1e-5
WARM_UP = 0.2  # part of the time after which memory is looked at for the first time
SEED = 42

BROKEN: dict[str, bytes] = {
    "no JSON": post(b'{"input": "a"'),
    "random bytes": post(random.Random(SEED).randbytes(10_000)),
    "wrong types": embed(input={"a": 1}),
    "numbers": embed(input=[1, 2, 3]),
    "no texts": embed(input=[]),
    "another model": embed(input="a", model="another"),
    "too many texts": embed(input=["a"] * 65),
    "a long text": embed(input="a" * 200_000),
    "deep JSON": post(b"[" * 100_000),
    "megabytes": post(b" " * 3_000_000),
    "megabytes announced": post(b"", 10**12),
    "no HTTP": b"\x16\x03\x01" + bytes(200) + b"\r\n\r\n",
}


class Clients:
    """What all clients know, and what they saw.

    Args:
        port: of the service.
        texts: that right requests are made of.
        vectors: of these texts, ``[N, D]``.
    """

    def __init__(self, port: int, texts: list[str], vectors: np.ndarray) -> None:
        self._port, self._texts, self._vectors = port, texts, vectors
        self._random = random.Random(SEED)
        self.seen: Counter[tuple[str, str]] = Counter()
        self.wrong = 0
        self.end = 0.0

    async def run(self, seconds: float) -> None:
        """All clients, until the time is over."""
        self.end = time.monotonic() + seconds
        kinds: list[Callable[[Connection], Awaitable[None]]] = [self._right] * 8
        kinds += [self._cut, self._cut, self._break, self._break, self._flood]
        await asyncio.gather(*(self._repeat(kind) for kind in kinds))

    async def _repeat(self, kind: Callable[[Connection], Awaitable[None]]) -> None:
        connection = Connection(self._port)
        while time.monotonic() < self.end:
            try:
                await kind(connection)
            except (OSError, asyncio.IncompleteReadError):
                connection.cut()
                self.seen[kind.__name__.strip("_"), "connection closed"] += 1
        connection.cut()

    async def _right(self, connection: Connection) -> None:
        places = [self._random.randrange(len(self._texts)) for _ in range(self._random.choice((1, 1, 2, 16)))]
        form = self._random.choice(("float", "base64"))
        request = embed(input=[self._texts[place] for place in places], encoding_format=form)
        status, body = await connection.ask(request)
        self.seen["right", str(status)] += 1
        if status == 200:
            found = [item["embedding"] for item in json.loads(body)["data"]]
            rows = [np.frombuffer(base64.b64decode(row), "<f4") if form == "base64" else np.array(row) for row in found]
            if len(rows) != len(places) or abs(np.array(rows) - self._vectors[places]).max() > TOLERANCE:
                self.wrong += 1
        elif status == 429:
            await asyncio.sleep(0.2)

    async def _cut(self, connection: Connection) -> None:
        request = embed(input=self._random.sample(self._texts, 8))
        await connection.send(request[: self._random.choice((40, len(request) // 2, len(request)))])
        await asyncio.sleep(self._random.random() * 0.2)
        connection.cut()
        self.seen["cut", "not waited for"] += 1

    async def _break(self, connection: Connection) -> None:
        kind = self._random.choice(list(BROKEN))
        try:
            status = str((await connection.ask(BROKEN[kind]))[0])
        except (OSError, asyncio.IncompleteReadError):
            status = "connection closed"
        connection.cut()
        self.seen[kind, status] += 1
        await asyncio.sleep(0.05)

    async def _flood(self, _: Connection) -> None:
        """More texts at once than the queue holds."""
        request = embed(input=[text[:200] for text in self._random.sample(self._texts, 60)])

        async def one() -> None:
            connection = Connection(self._port)
            status, _ = await connection.ask(request)
            self.seen["flood", str(status)] += 1
            connection.cut()

        await asyncio.gather(*(one() for _ in range(8)))
        await asyncio.sleep(3)


def encoded(texts: list[str], model: str, folder: Path) -> np.ndarray:
    """What `biencoder encode` makes of the texts."""
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["--model", model, "--input", str(folder / "texts.jsonl"), "--output", str(folder / "texts.npy")]
    subprocess.run([sys.executable, "-m", "biencoder", "encode", *words], cwd=ROOT, check=True)
    vectors: np.ndarray = np.load(folder / "texts.npy")
    return vectors


def endure(asked: argparse.Namespace, texts: list[str]) -> None:
    """Run all clients, print the table.

    Raises:
        SystemExit: an answer was wrong, a request failed (500), or the service did not end well.
    """
    texts, model = [text[:LETTERS] for text in texts[:TEXTS]], model_folder(asked)
    vectors = encoded(texts, model, asked.output_dir)
    command = [sys.executable, *SERVE, *LIMITS]
    with running(command, model, asked.output_dir / "endurance.log") as (port, process):
        clients = Clients(port, texts, vectors)
        asyncio.run(clients.run(WARM_UP * asked.endurance))
        start = memory("VmRSS", process.pid)
        asyncio.run(clients.run((1 - WARM_UP) * asked.endurance))
        end, peak = memory("VmRSS", process.pid), memory("VmHWM", process.pid)
    rows = [[kind, status, f"{count:,}"] for (kind, status), count in sorted(clients.seen.items())]
    rows += [["right answers with wrong vectors", "", str(clients.wrong)]]
    rows += [["memory after a fifth of the time, MB", "", f"{start / 1e6:.0f}"]]
    rows += [["memory at the end, MB", "", f"{end / 1e6:.0f}"], ["peak memory, MB", "", f"{peak / 1e6:.0f}"]]
    rows += [["exit code after SIGTERM", "", str(process.returncode)]]
    print_table(f"{asked.endurance:g} s of right and broken requests", ["request", "answer", "number"], rows)
    failed = any(status == "500" for _, status in clients.seen)
    if clients.wrong or failed or process.returncode:
        raise SystemExit("the service did not endure")
