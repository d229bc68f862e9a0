"""``biencoder serve`` in a process of its own, as a client meets it."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

KEY = "a-key-of-the-tests"

# The service encodes nothing as long as the file that is its first argument exists.
_HELD = """
import sys, time
from pathlib import Path
from biencoder.cli import main
from biencoder.model.encoder import Encoder
embed, hold = Encoder.embed, Path(sys.argv[1])
def held(self, batch):
    while hold.exists():
        time.sleep(0.005)
    return embed(self, batch)
Encoder.embed = held
sys.exit(main(sys.argv[2:]))
"""


@dataclass
class Served:
    """A running service."""

    process: "subprocess.Popen[str]"
    url: str
    hold: Path

    def client(self, key: str = KEY) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=20, headers={"Authorization": f"Bearer {key}"} if key else {})

    def post(self, **fields: object) -> httpx2.Response:
        with self.client() as client:
            return client.post("/v1/embeddings", json=fields)

    def figure(self, name: str) -> float:
        """A figure of ``/metrics``; 0 if it is not there."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


@contextlib.contextmanager
def served(model: Path, hold: Path, *words: str) -> Iterator[Served]:
    """A service of a model on a free port; killed at the end if it still runs."""
    command = [sys.executable, "-c", _HELD, str(hold), "serve", "--model", str(model), "--port", "0", *words]
    environment = os.environ | {"BIENCODER_SERVE_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        match = re.search(r"(http://\S+)/v1 ", said)
        assert match, said + process.communicate()[1]
        yield Served(process, match[1], hold)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
