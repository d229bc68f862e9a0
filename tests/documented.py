"""What the documents show: their blocks of code, the commands in these, and which of them no test runs, and why."""

import re
from dataclasses import dataclass
from pathlib import Path

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
        """The command lines, without those that only install something."""
        joined = self.text.replace("\\\n", " ")
        found = [line for line in joined.splitlines() if line and not line.startswith("#")]
        return [line for line in found if not INSTALLS.match(line)]


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"(?:<!-- not run: (.+) -->\n)?```{language}\n(.*?)```", text, re.DOTALL)
    return [Block(code, reason or None) for reason, code in found]


def commands(page: Path) -> list[str]:
    """The command lines of biencoder that a page shows."""
    return [line for block in blocks(page, "sh") for line in block.lines() if OURS.match(line)]
