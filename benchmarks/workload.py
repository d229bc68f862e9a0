"""What every system is given, and how each is run: in a process of its own, so that peak memory is its own.

This process imports no torch: Linux counts the memory of a starting process into the child's peak.
"""

import argparse
import gzip
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from biencoder.demo.mini_lm import find_model

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("biencoder", "sentence-transformers", "FlagEmbedding", "transformers", "torch")
BERT_BASE = "bert-base"  # in the place of a model's folder: see `benchmarks.bert_base`


@dataclass(frozen=True)
class Workload:
    """One training run; the same for every system but for ``system`` itself.

    Attributes:
        system: a name in `benchmarks.systems.SYSTEMS`.
        model: folder of the model to start from.
        train_data: JSON lines with ``query`` and ``pos``; the first positive counts.
        output_dir: where the trained model goes.
        batch_size: pairs a step.
        max_length: tokens of passages, and of queries if nothing else is said.
        temperature: divides the cosines; sentence-transformers' ``scale`` is its inverse.
        learning_rate: peak of a linear schedule with warm-up over a tenth of the steps.
        dropout: probability; None for the model's own.
        max_steps: optimizer steps; None for one epoch.
        seed: of order and dropout.
        memory_budget: bytes, for biencoder, which alone has one; None for its default.
        device: ``cpu`` or ``cuda``, for all systems.
        query_length: tokens of queries; None for as many as of passages.
    """

    system: str
    model: str
    train_data: str
    output_dir: str
    batch_size: int
    max_length: int
    temperature: float
    learning_rate: float = 5e-5
    dropout: float | None = None
    max_steps: int | None = None
    seed: int = 42
    memory_budget: int | None = None
    device: str = "cpu"
    query_length: int | None = None


@dataclass(frozen=True)
class Measured:
    """What a run showed.

    Attributes:
        workload: what was run.
        step_ends: seconds, on one clock, at which each optimizer step ended.
        peak_bytes: largest resident memory of the process; on a GPU, most that tensors took of its memory.
        seconds: wall time of the whole process, imports, loading and saving included.
        disturbance: share of the machine's processor time that other processes took meanwhile.
    """

    workload: Workload
    step_ends: list[float]
    peak_bytes: int
    seconds: float
    disturbance: float

    def pairs_per_second(self, skip: int) -> float:
        """Throughput of full steps, the first ``skip`` left out, waiting for data included."""
        steps = len(self.step_ends) - skip
        return self.workload.batch_size * steps / (self.step_ends[-1] - self.step_ends[skip - 1])

    @property
    def training_seconds(self) -> float:
        """Of the steps alone: the first one, whose start is not seen, counts as much as the others do on average."""
        steps = len(self.step_ends)
        return (self.step_ends[-1] - self.step_ends[0]) * steps / (steps - 1)


def measure(workload: Workload) -> Measured:
    """Run a workload in a process of its own.

    Raises:
        RuntimeError: the process failed; the message ends with what it wrote last.
    """
    folder = Path(workload.output_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log_path = folder.with_name(folder.name + ".log")
    result_path = folder.with_name(folder.name + ".result.json")
    command = [sys.executable, "-m", "benchmarks.systems", json.dumps(asdict(workload)), str(result_path)]
    began, busy = time.perf_counter(), _busy_seconds()
    with log_path.open("wb") as log:
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=_environment())
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds, busy = time.perf_counter() - began, _busy_seconds() - busy
    if child.returncode != 0:
        raise RuntimeError(f"{workload.system} failed ({child.returncode}):\n{log_path.read_text()[-3000:]}")
    result = json.loads(result_path.read_text())
    others = max(0.0, busy - usage.ru_utime - usage.ru_stime) / (seconds * (os.cpu_count() or 1))
    peak = result["gpu_peak"] or usage.ru_maxrss * 1024
    return Measured(workload, result["step_ends"], peak, seconds, round(others, 3))


def limits(workload: Workload) -> dict[str, Any]:
    """What the machine can do at the moment and what a pair asks of it, see `benchmarks.peak`."""
    found: dict[str, Any] = json.loads(last_line("benchmarks.peak", json.dumps(asdict(workload))))
    return found


def last_line(module: str, *words: str) -> str:
    """What a module, run in a process of its own, printed last."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True, env=_environment())
    return done.stdout.splitlines()[-1]


def precision(system: str, device: str) -> str:
    """The precision in which a system computes: what its name says, else bf16 on a GPU or a CPU that has it."""
    if system.endswith(("fp32", "bf16")):
        return system[-4:]
    return "bf16" if device == "cuda" or has_bf16() else "fp32"


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 numbers."""
    return Path("/proc/cpuinfo").exists() and "avx512_bf16" in Path("/proc/cpuinfo").read_text()


def _busy_seconds() -> float:
    """Seconds that all processors together have worked since the machine started (0 where nothing says it)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _wait, interrupts, soft, steal, *_ = map(
        int, stat.read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + interrupts + soft + steal) / os.sysconf("SC_CLK_TCK")


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "WANDB_DISABLED": "true"}


@contextmanager
def sample(train_data: Path, rows: int, seed: int = 0) -> Iterator[Path]:
    """A file with ``rows`` rows of the training data, drawn with ``seed``, that is gone afterwards.

    Raises:
        SystemExit: the data has fewer rows.
    """
    opener = gzip.open if train_data.suffix == ".gz" else open
    with opener(train_data, "rt", encoding="utf-8") as file:
        lines = file.readlines()
    if len(lines) < rows:
        raise SystemExit(f"--train-data {train_data}: has {len(lines)} rows and this needs {rows}")
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(random.Random(seed).sample(lines, rows))
        file.flush()
        yield Path(file.name)


def arguments(description: str, *, batch_size: int, max_length: int, systems: Sequence[str]) -> argparse.ArgumentParser:
    """The flags that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--train-data", type=Path, required=True, help="JSON lines with query and pos, .gz too")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for models, logs and results")
    parser.add_argument("--model", help=f"model folder, or {BERT_BASE}: that size, random (default: the demo's MiniLM)")
    parser.add_argument("--systems", nargs="+", default=list(systems), help="names in benchmarks/systems.py")
    parser.add_argument("--batch-size", type=int, default=batch_size, help="pairs a step")
    parser.add_argument("--max-length", type=int, default=max_length, help="tokens of queries and of passages")
    parser.add_argument("--query-length", type=int, help="tokens of queries (default: as many as of passages)")
    parser.add_argument("--temperature", type=float, default=0.05, help="for all systems")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for all systems")
    parser.add_argument("--dropout", type=float, help="for all systems (default: the model's own)")
    return parser


def workload(asked: argparse.Namespace, system: str, name: str) -> Workload:
    """The run of ``system`` that the flags ask for, with its model in the folder ``name`` below ``--output-dir``."""
    return Workload(
        system=system,
        model=model_folder(asked),
        train_data=str(asked.train_data.resolve()),
        output_dir=str(asked.output_dir.resolve() / name.replace(" ", "-")),
        batch_size=asked.batch_size,
        max_length=asked.max_length,
        temperature=asked.temperature,
        dropout=asked.dropout,
        device=asked.device,
        query_length=asked.query_length,
    )


def model_folder(asked: argparse.Namespace) -> str:
    """The folder of the model that the flags ask for, made there if it is the random one."""
    if asked.model != BERT_BASE:
        return asked.model or str(find_model())
    folder: Path = asked.output_dir.resolve() / BERT_BASE
    if not folder.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.bert_base", str(folder)], cwd=ROOT, check=True)
    return str(folder)


def compared(speeds: Sequence[float], to: Sequence[float]) -> list[str]:
    """Three cells: the median, the range, and how many times as fast ``to`` is."""
    middle = median(speeds)
    return [f"{middle:.2f}", f"{min(speeds):.2f} to {max(speeds):.2f}", f"{median(to) / middle:.2f}"]


def report(asked: argparse.Namespace, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the Markdown table under a description of the machine and of the training."""
    model = Path(asked.model).name if asked.model else "MiniLM-L6"
    setting = f"{name}: {model}, batch {asked.batch_size}, {asked.max_length} tokens, temperature {asked.temperature}, "
    setting += "dropout " + ("as the model says" if asked.dropout is None else str(asked.dropout))
    print_table(setting, columns, rows)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the Markdown table under its title and a description of the machine."""
    lines = [" | ".join(cells) for cells in (columns, ["---"] * len(columns), *rows)]
    print("\n".join([title, "", machine(), "", *(f"| {line} |" for line in lines)]), flush=True)


def save(asked: argparse.Namespace, name: str, results: list[dict[str, Any]]) -> None:
    """Write what was measured to ``NAME.json`` in ``--output-dir``."""
    path = asked.output_dir / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "results": results}, indent=1), encoding="utf-8")


def as_dict(measured: Measured) -> dict[str, Any]:
    """Plain values, for `save`."""
    return asdict(replace(measured, step_ends=[round(end - measured.step_ends[0], 4) for end in measured.step_ends]))


def machine() -> str:
    """Processor, cores, memory and versions in one line."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    bf16 = "with AMX" if " amx_bf16" in info else "with AVX512-BF16" if has_bf16() else "without AVX512-BF16"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    packages = ", ".join(f"{package} {_version(package)}" for package in PACKAGES)
    processor = names[0] if names else platform.processor()
    cores = len(os.sched_getaffinity(0))
    return f"{processor}, {cores} cores, {bf16}, {memory:.0f} GB, Python {platform.python_version()}, {packages}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
