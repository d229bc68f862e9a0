"""Faults injected into training runs: kills at any file operation or moment, full disks, broken checkpoints.

A run that was hit is started again, and what it leaves is compared with what an undisturbed run leaves, byte for byte.
Each run is the command line, in a process forked from one that has imported everything; torch computes in no process
that is forked from. Used by `tests/training/test_faults.py` and, for all of it, `benchmarks/faults.py`.
"""

import functools
import hashlib
import json
import multiprocessing.forkserver
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_points import Armed, AtOperation
from tiny import WORDS, tiny_model
from transformers import conversion_mapping

from biencoder.cli import main
from biencoder.config import MiningOptions
from biencoder.training import run
from biencoder.training.sources import negatives

assert run  # imported before processes are forked
conversion_mapping.get_checkpoint_conversion_mapping("bert")  # made once a process, which takes as long as a short run

SECONDS = 300  # in which every run ends, also a broken one
TIMINGS = ("seconds", "queries_per_second", "tokens_per_second", "peak_bytes")

# What is trained: flags beside those of `words`. Dropout is on in all, and the second epoch draws other negatives.
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks computed twice": {"memory-budget": "1MB", "group-size": 4, "passage-max-len": 64},
    "mined negatives": {"mine-negatives": 2, "refresh-negatives": 1},
    "LoRA": {"lora-rank": 4},
    "2 processes": {},
}


@dataclass(frozen=True)
class AfterSeconds:
    """A signal from outside at a moment of the training, in seconds since its first line of metrics.

    It may come too late, when the run is over. A test that counts on a place takes `AtCall` or `AtOperation`.
    """

    seconds: float
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class Damage:
    """What a disk did, after the run was killed, to a file whose path in the output folder is given."""

    path: str
    how: str


Fault = Armed | AfterSeconds | Damage


@dataclass
class Outcome:
    """What came of a run that was hit, and of the one that went on from there.

    Attributes:
        hit: the fault came before the run was over.
        codes: exit codes of the run that was hit, one a rank; minus the signal that ended it.
        said: what the first one printed on standard error.
        resumed: the second run came to its end.
        from_step: the step that it went on from; 0 when there was no checkpoint yet.
        different: files that are not those of an undisturbed run.
    """

    hit: bool
    codes: list[int] = field(default_factory=list)
    said: str = ""
    resumed: bool = False
    from_step: int = 0
    different: list[str] = field(default_factory=list)
    said_then: str = ""

    @property
    def equal(self) -> bool:
        return self.resumed and not self.different


class Place:
    """A model, data, and the undisturbed run of a scenario, with which the others are compared."""

    def __init__(self, folder: Path, scenario: str = "plain") -> None:
        self.folder, self.scenario = folder, scenario
        self.ranks = 2 if scenario == "2 processes" else 1
        folder.mkdir(parents=True)
        tiny_model(folder / "model", dropout=True)
        _write_data(folder)
        self._whole = folder / "whole"
        began = time.monotonic()
        codes, _, said = self.run(self._whole, AtOperation(-1, "list"))
        self.seconds = time.monotonic() - began
        assert codes == [0] * self.ranks, said
        self.expected = state_of(self._whole / "out")
        self.operations: list[tuple[str, str]] = json.loads((self._whole / "operations.json").read_text())

    def words(self) -> list[str]:
        options = {
            "model": self.folder / "model", "train-data": self.folder / "pairs.jsonl",
            "eval-data": self.folder / "beir", "output-dir": "out", "batch-size": 8, "group-size": 3, "epochs": 2,
            "eval-steps": 4, "learning-rate": 1e-3, "precision": "fp32", "save-steps": 3, "device": "cpu",
        } | SCENARIOS[self.scenario]  # fmt: skip
        given = (word for name, value in options.items() for word in (f"--{name}", str(value)))
        return ["train", *given, "--no-general-guard", "--no-cross-validate"]

    def run(self, work: Path, fault: Fault | None = None, *, forked: bool = True) -> tuple[list[int], str, str]:
        """The command in the folder ``work``: exit codes, and what rank 0 printed on its two streams."""
        work.mkdir(exist_ok=True)
        start = _start_forked if forked else _start_command
        with _ended([start(work, self.words(), fault, environment) for environment in self._environments()]) as started:
            if isinstance(fault, AfterSeconds):
                _wait_for_steps(work / "out" / "metrics.jsonl", started)
                time.sleep(fault.seconds)
                for process in started if fault.signal != signal.SIGKILL else started[-1:]:
                    if _code(process) is None:
                        os.kill(process.pid, fault.signal)
            end = time.monotonic() + SECONDS
            while any(_code(process) is None for process in started) and time.monotonic() < end:
                time.sleep(0.005)
        out, err = ((work / f"{name}0").read_text() for name in ("out", "err"))
        return [_code(process) for process in started], out, err

    def _environments(self) -> list[dict[str, str]]:
        if self.ranks == 1:
            return [{}]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": str(self.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(self.ranks)]

    def inject(self, fault: Fault, *, forked: bool = True, work: Path | None = None) -> Outcome:
        """Start a run, hit it, and start it again."""
        work = work or self.folder / "hit"
        if isinstance(fault, Damage):
            last = max(i for i, (event, path) in enumerate(self.operations) if "run.json" in path)
            codes, _, err = self.run(work, AtOperation(last, "kill"), forked=forked)
            damage(work / "out" / fault.path, fault.how)
        else:
            codes, _, err = self.run(work, fault, forked=forked)
        outcome = Outcome(any(codes), codes, err)
        if outcome.hit:
            self.resume(work, outcome, forked=forked)
        shutil.rmtree(work / "out", ignore_errors=True)
        return outcome

    def resume(self, work: Path, outcome: Outcome, *, forked: bool = True) -> None:
        """Go on, and compare."""
        codes, out, err = self.run(work, forked=forked)
        outcome.resumed, outcome.said_then = not any(codes), err
        found = [line for line in out.splitlines() if line.startswith("going on from step ")]
        outcome.from_step = int(found[0].split()[4]) if found else 0
        got = state_of(work / "out") if outcome.resumed else {}
        names = sorted(got.keys() | self.expected.keys())
        outcome.different = [name for name in names if got.get(name) != self.expected.get(name)]


def _write_data(folder: Path) -> None:
    draw = np.random.default_rng(0)
    with (folder / "pairs.jsonl").open("w") as file:
        for i in range(28):
            query, *texts = (" ".join(draw.choice(WORDS, size=size)) for size in (4, *draw.integers(10, 30, size=4)))
            file.write(json.dumps({"query": query, "pos": texts[:1], "neg": texts[1 : 1 + i % 4]}) + "\n")
    (folder / "beir" / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        lines = [json.dumps({"_id": word, "text": word}) + "\n" for word in WORDS[:24]]
        (folder / "beir" / f"{name}.jsonl").write_text("".join(lines))
    (folder / "beir" / "qrels" / "test.tsv").write_text("".join(f"{word}\t{word}\t1\n" for word in WORDS[:24]))


def state_of(output: Path) -> dict[str, str]:
    """A digest of every file that a run leaves, without times; checkpoints but the last one may be of other steps."""
    steps = sorted(path.name for path in (output / "checkpoints").glob("step-*"))
    return {
        str(path.relative_to(output)): hashlib.sha256(_without_times(path)).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and not set(steps[:-1]) & set(path.parts)
    }


def _without_times(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "report.html":  # made from the other files, and shows the times
        return b""
    if path.name == "metrics.jsonl":
        lines = [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in content.splitlines()]
        return json.dumps(lines).encode()
    if path.name == "run.json":
        marker = json.loads(content)
        del marker["files"]["metrics.jsonl"]
        return json.dumps(marker).encode()
    return content


def damage(path: Path, how: str) -> None:
    """Do to a file what disks and people do."""
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes({
            "cut": content[:middle],
            "emptied": b"",
            "one bit flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        }[how])  # fmt: skip


# --- processes --------------------------------------------------------------------------------------------------------

Process = Any  # multiprocessing's or subprocess's: both have a pid
IMPORTED_LATE = ("pandas", "pyarrow.compute", "transformers.models.bert.modeling_bert", "transformers.modeling_utils")
_context = multiprocessing.get_context("forkserver")


@functools.cache
def _warm() -> None:
    """Start the process that is forked from; until Python 3.13 it does not know this one's path by itself."""
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path, path])
    _context.set_forkserver_preload(["faults", "pytest", *IMPORTED_LATE])
    multiprocessing.forkserver.ensure_running()
    os.environ["PYTHONPATH"] = path


def _start_forked(work: Path, words: list[str], fault: Fault | None, environment: dict[str, str]) -> Process:
    _warm()
    process = _context.Process(target=_child, args=(work, words, fault, environment))
    process.start()
    return process


def _start_command(work: Path, words: list[str], fault: Fault | None, environment: dict[str, str]) -> Process:
    assert fault is None or isinstance(fault, AfterSeconds)
    command = [sys.executable, "-m", "biencoder", *words]
    with (work / "out0").open("wb") as out, (work / "err0").open("wb") as err:
        return subprocess.Popen(command, cwd=work, stdout=out, stderr=err, env=os.environ | environment)


def _child(work: Path, words: list[str], fault: Fault | None, environment: dict[str, str]) -> None:
    os.chdir(work)
    os.environ.update(environment)
    number = environment.get("RANK", "0")
    for stream, name in ((1, f"out{number}"), (2, f"err{number}")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    torch.set_num_threads(1)
    # A random model's scores lie so close together that none is clearly below the positive's.
    setattr(negatives, "MiningOptions", functools.partial(MiningOptions, max_share=1.5))  # noqa: B010
    if isinstance(fault, Armed) and number == "0":
        fault.arm(work / "out")
    code = main(words)
    if isinstance(fault, AtOperation) and fault.how == "list" and number == "0":
        fault.write(work / "operations.json")
    os._exit(code)


def _code(process: Process) -> Any:
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


@contextmanager
def _ended(started: list[Process]) -> Iterator[list[Process]]:
    """None of them is left behind."""
    try:
        yield started
    finally:
        for process in started:
            if _code(process) is None:
                os.kill(process.pid, signal.SIGKILL)
        for process in started:
            (process.wait if isinstance(process, subprocess.Popen) else process.join)()


def _wait_for_steps(metrics: Path, started: list[Process]) -> None:
    end = time.monotonic() + SECONDS
    while not metrics.exists() and all(_code(process) is None for process in started):
        assert time.monotonic() < end
        time.sleep(0.002)
