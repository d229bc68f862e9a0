"""What the documents show: blocks of code, the commands in these, which of them no test runs, and how others run."""

import re
import shlex
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from biencoder.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What an environment is made with needs the network; .ci/run starts with the README's own lines.
INSTALLS = re.compile(r"(python3 -m venv|pip install) ")
OURS = re.compile(r"(torchrun .* -m )?biencoder ")


@dataclass(frozen=True)
class Block:
    """A block of code of a page, and what a comment above it says why it is not run."""

    text: str
    not_run: str | None

    def lines(self) -> list[str]:
        """The command lines, without those that only install something, and without spaces that align them."""
        joined = re.sub(r" {2,}", " ", self.text.replace("\\\n", " "))
        found = [line for line in joined.splitlines() if line and not line.startswith("#")]
        return [line for line in found if not INSTALLS.match(line)]


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"(?:<!-- not run: ([^\n]+) -->\n)?```{language}\n(.*?)```", text, re.DOTALL)
    return [Block(code, reason or None) for reason, code in found]


def commands(page: Path) -> list[str]:
    """The command lines of biencoder that a page shows."""
    return [line for block in blocks(page, "sh") for line in block.lines() if OURS.match(line)]


OUTPUTS = {"--output-dir", "--output", "--run-file"}
# A step shows that training works; what else a run does by default is tested elsewhere and takes longer.
MORE = {
    "train": ["--max-steps", "1", "--no-general-guard", "--no-cross-validate"],
    "distill": ["--dim", "16"],
    "serve": ["--port", "0"],
}
SMALLER = {"--freeze-layers": "1", "--dim": "16", "--dims": "16"}  # than the layers and dimensions of tiny models


def run_small(line: str) -> int:
    """Run a command line, which writes what it writes for the first time, for models of ``tiny.py``."""
    words = shlex.split(line)[1:]
    for i, (flag, value) in enumerate(list(pairwise(words)), 1):
        words[i] = SMALLER.get(flag, value)
        if flag in OUTPUTS and Path(value).is_dir():
            shutil.rmtree(value)
        elif flag in OUTPUTS:
            Path(value).unlink(missing_ok=True)
    return main([*words, *MORE.get(words[0], [])])
