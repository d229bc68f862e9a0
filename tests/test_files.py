import errno
from pathlib import Path

import pytest

from biencoder.errors import UserError
from biencoder.files import open_claimed, system_errors


def test_what_a_claimed_file_held_is_there_and_it_is_made_when_missing(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with open_claimed(path) as file:
        file.write(b"text")
    with open_claimed(path) as file:
        assert file.read() == b"text"


def test_a_claimed_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open_claimed(path) as file:
        file.write(b"text")
        file.flush()
        with pytest.raises(UserError, match="file: another run is writing to it"), open_claimed(path):
            pass
    assert path.read_bytes() == b"text"


def test_a_file_that_was_renamed_while_it_was_claimed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.partial"
    path.write_text("whole")
    monkeypatch.setattr("biencoder.files.claim", lambda *_: path.rename(tmp_path / "file"))
    with pytest.raises(UserError, match="another run is writing to it"), open_claimed(path):
        pass
    assert (tmp_path / "file").read_text() == "whole"


def test_what_other_libraries_say_of_the_system_is_an_error_of_the_system(tmp_path: Path) -> None:
    class RustError(Exception):
        pass

    with pytest.raises(OSError, match="No space left on device") as raised, system_errors(tmp_path):
        raise RustError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path))
    with pytest.raises(RustError), system_errors(tmp_path):
        raise RustError("something else")
