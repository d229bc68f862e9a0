"""Draw docs/demo.svg, the picture in the README, from what ``biencoder demo`` prints in a pseudo-terminal.

Run ``python docs/picture.py`` after a change in that output. It takes a few minutes and needs the `demo` extra.
"""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).with_name("demo.svg")
COLUMNS, LINES = 100, 40

# The lines that the picture shows, in this order, as patterns. A dim ellipsis stands for the lines between them.
PARTS = (
    r"^Reading the .*\n.* pairs from .*$",
    r"^data +found(.*\n)*?positive also answers.*$",
    r"^train .*100%.*$",
    r"^Before and after(.*\n)*?map@100.*$",
    r"^(The tuned model is|No significant change) .*\(p = .*$",
    r"^The right answer moved .*$",
    r'^".*\n.*\n─+\n(.+\n)*?.*<- the right one(\n.+)*',
)


def main() -> None:
    """Run the demo, draw its output, write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        output = run_in_terminal([sys.executable, "-m", "biencoder", "demo"], Path(folder))
    PICTURE.write_text(drawn(shown(output)), encoding="utf-8")


def run_in_terminal(command: list[str], folder: Path) -> str:
    """Run ``command`` in ``folder``; return what it writes to a terminal, with its colours and rewritten lines."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, cwd=folder, env=environment) as process:
        os.close(its)
        output = bytearray()
        while piece := _read(ours):
            output += piece
            sys.stdout.buffer.write(piece)
            sys.stdout.flush()
    os.close(ours)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return output.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so when the last writer has closed the terminal
        return b""


def shown(output: str) -> Text:
    """Select the lines of `PARTS` and put the command above them."""
    lines = output.replace("\r\n", "\n").split("\n")
    run = Text.from_ansi("\n".join(line.rpartition("\x1b[2K")[2] for line in lines))
    parts = [Text.assemble(("$ ", "green"), ("biencoder demo", "bold"))]
    end = -1
    for pattern in PARTS:
        found = re.compile(pattern, re.MULTILINE).search(run.plain, end + 1)
        if not found:
            sys.exit(f"the demo printed nothing like {pattern!r} there; mend PARTS in {__file__}")
        if run.plain[end + 1 : found.start()].strip() and end >= 0:
            parts.append(Text("⋮", "bright_black"))
        parts.append(run[found.start() : found.end()])
        end = found.end()
    return Text("\n").join([*parts, Text()])  # without an empty last line, rich cuts off what hangs below the letters


def drawn(text: Text) -> str:
    """Draw ``text`` as an SVG that needs no font from the network."""
    width = max(len(line) for line in text.plain.splitlines())
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(text, highlight=False)
    svg = console.export_svg(title="biencoder demo", unique_id="demo")
    offline = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return offline.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


if __name__ == "__main__":
    main()
