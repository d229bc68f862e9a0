"""Documents a second and waiting time of services of one model, at 1, 8 and 64 clients; each in turn and again.

python -m benchmarks.serve --train-data medquad/train.jsonl.gz --output-dir build/serve
python -m benchmarks.serve --train-data medquad/train.jsonl.gz --output-dir build/serve --endurance 600

The second command sends right requests together with broken ones, see `benchmarks.serve_endurance`.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

from benchmarks.http_load import embed, load, wait_until_ready
from benchmarks.status import forget_peak, memory
from benchmarks.systems import read_pairs
from benchmarks.workload import ROOT, arguments, model_folder, print_table, save

WARM_UP = 32  # documents before the clock starts
SERVE = ["-m", "biencoder", "serve", "--model", "{model}", "--port", "{port}"]
COMMANDS = {
    "biencoder": [*SERVE, "--precision", "auto"],
    "biencoder fp32": SERVE,
    "FastAPI, threads": ["-m", "benchmarks.plain_service", "{model}", "{port}", "threads"],
    "FastAPI, one at a time": ["-m", "benchmarks.plain_service", "{model}", "{port}", "async"],
}


@dataclass(frozen=True)
class Round:
    """What clients saw of a service in one round."""

    system: str
    clients: int
    documents_per_second: float
    busy_per_document: float  # seconds of processor time
    p50: float
    p99: float
    peak_bytes: int
    client_share: float


@contextlib.contextmanager
def running(command: Sequence[str], model: str, log: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A service in a process of its own: its port and the process. It is stopped at the end by SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [word.format(model=model, port=port) for word in command]
    with log.open("ab") as file:
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_until_ready(port, lambda: process.poll() is None)
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def busy(process: "subprocess.Popen[bytes]") -> float:
    """Seconds of processor time that the process has taken."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(system: str, command: Sequence[str], asked: argparse.Namespace, texts: list[str]) -> list[Round]:
    """One round of a system: a fresh process, and each number of clients in turn."""
    requests = [embed(input=text) for text in texts]
    rounds = []
    with running(command, model_folder(asked), asked.output_dir / f"{system.replace(' ', '-')}.log") as (port, process):
        for clients in asked.clients:
            load(port, requests[: min(WARM_UP, asked.documents)], clients)
            forget_peak(process.pid)
            before = busy(process)
            seen = load(port, requests[: asked.documents if clients > 1 else asked.documents // 2], clients)
            documents, cuts = len(seen.latencies), quantiles(seen.latencies, n=100)
            work = (busy(process) - before) / documents
            speed, peak = documents / seen.seconds, memory("VmHWM", process.pid)
            rounds.append(Round(system, clients, speed, work, cuts[49], cuts[98], peak, seen.client_share))
            print(rounds[-1], flush=True)
    return rounds


def commands(asked: argparse.Namespace) -> dict[str, list[str]]:
    """The systems that are asked for, and how each is started."""
    return {name: [sys.executable, *words] for name, words in COMMANDS.items() if name in asked.systems}


def row(rounds: list[Round], best_rival: float) -> list[str]:
    """Cells of a system at one number of clients: medians over the rounds."""
    speeds = [each.documents_per_second for each in rounds]
    return [
        str(rounds[0].clients),
        rounds[0].system,
        f"{median(speeds):.1f}",
        f"{min(speeds):.1f} to {max(speeds):.1f}",
        f"{median(speeds) / best_rival:.2f}",
        f"{1000 * median(each.busy_per_document for each in rounds):.1f}",
        f"{1000 * median(each.p50 for each in rounds):.0f}",
        f"{1000 * median(each.p99 for each in rounds):.0f}",
        f"{median(each.peak_bytes for each in rounds) / 1e9:.2f}",
        f"{median(each.client_share for each in rounds):.2f}",
    ]


def show(asked: argparse.Namespace, rounds: list[Round]) -> None:
    """Print the table."""
    rows = []
    for clients in asked.clients:
        here = [each for each in rounds if each.clients == clients]
        names = list(dict.fromkeys(each.system for each in here))
        by_name = {name: [each for each in here if each.system == name] for name in names}
        plain = [n for n in names if n.startswith("FastAPI")] or names
        rival = max(median(each.documents_per_second for each in by_name[name]) for name in plain)
        rows += [row(by_name[name], rival) for name in names]
    columns = [
        "clients",
        "service",
        "documents/s (median)",
        "range",
        "times the best FastAPI",
        "processor, ms a document",
    ]
    columns += ["p50, ms", "p99, ms", "peak memory, GB", "cores that the clients took"]
    model = Path(asked.model).name if asked.model else "MiniLM-L6"
    title = f"Serving {model}, one document a request, {asked.repeats} rounds of {asked.documents} documents"
    print_table(title, columns, rows)


def main() -> None:
    """Measure, print the table."""
    parser = arguments(__doc__ or "", batch_size=1, max_length=256, systems=tuple(COMMANDS))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="that send at the same time")
    parser.add_argument("--documents", type=int, default=1024, help="of a round; one client sends half of them")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each system")
    parser.add_argument("--endurance", type=float, help="seconds of right and broken requests, instead of the table")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    texts = read_pairs(str(asked.train_data))[1]
    if asked.endurance:
        from benchmarks.serve_endurance import endure

        endure(asked, texts)
        return
    rounds: list[Round] = []
    for _ in range(asked.repeats):
        for system, command in commands(asked).items():
            rounds += measure(system, command, asked, texts[: asked.documents])
    save(asked, "serve", [asdict(each) for each in rounds])
    show(asked, rounds)


if __name__ == "__main__":
    main()
