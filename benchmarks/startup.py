"""Seconds until a command answers, each in turn and again.

python -m benchmarks.startup
"""

import argparse
import subprocess
import sys
import time
from statistics import median

from benchmarks.workload import print_table

COMMANDS = {
    "biencoder --help": ["-m", "biencoder", "--help"],
    "biencoder train --help": ["-m", "biencoder", "train", "--help"],
    "import biencoder": ["-c", "import biencoder"],
    "from biencoder import Encoder": ["-c", "from biencoder import Encoder"],
    "from sentence_transformers import SentenceTransformer": [
        "-c",
        "from sentence_transformers import SentenceTransformer",
    ],
}


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each")
    asked = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(asked.repeats):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - began)
    rows = [[name, f"{median(t):.2f}", f"{min(t):.2f} to {max(t):.2f}"] for name, t in seconds.items()]
    print_table(f"Start, {asked.repeats} runs", ["command", "seconds (median)", "range"], rows)


if __name__ == "__main__":
    main()
