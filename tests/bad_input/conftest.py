import shutil
import tempfile
from pathlib import Path

import pytest
from commands import Refused, check_refused, fill


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every command of ``commands.GOOD`` works on."""
    return fill(tmp_path_factory.mktemp("template"))


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a copy of the template; its sibling ``tmp`` is where temporary files go."""
    folder = tmp_path / "place"
    shutil.copytree(template, folder)
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return folder


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must refuse: code 2, one line with ``parts`` in it, and nothing written anywhere."""

    def run(words: list[str], *parts: str, lines: int = 1) -> None:
        check_refused(place.parent, words, parts, capsys, lines=lines)

    return run
