"""What a run refuses at its start."""

import threading
from pathlib import Path

import pytest

from biencoder.errors import UserError
from biencoder.training.steps import start


def test_a_folder_that_process_0_alone_sees_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "SEEN_WITHIN", 0.1)
    with pytest.raises(
        UserError, match=r"run\.json: process 0 wrote this, .* does not see it; name an --output-dir on"
    ):
        start._refuse_unshared(tmp_path / "run.json")


def test_a_file_that_appears_late_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    threading.Timer(0.2, path.touch).start()
    start._refuse_unshared(path)
    assert path.exists()
