from pathlib import Path

import pytest

from biencoder.errors import UserError
from biencoder.serving.keys import VARIABLE, Keys, read_keys


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_each_key_of_a_file_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "from-the-environment")
    (tmp_path / "keys").write_text("old-key\n\n new-key \n")
    keys = read_keys(tmp_path / "keys")
    assert keys
    assert keys.admit("Bearer old-key")
    assert keys.admit("bearer  new-key")
    for wrong in ("", "Bearer", "Bearer ", "Bearer from-the-environment", "old-key", "Basic old-key", "Bearer öld-key"):
        assert not keys.admit(wrong)


def test_without_a_file_the_environment_says_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "a-key\n")
    assert read_keys(None).admit("Bearer a-key")
    assert not read_keys(None).admit("Bearer b-key")


def test_without_any_key_everybody_is_let_in() -> None:
    assert not read_keys(None)
    assert Keys([]).admit("")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"\n\n", "holds no key; write one per line"),
        (b"two words\n", "an API key holds characters that a key cannot have"),
        ("schlüssel\n".encode(), "an API key holds characters that a key cannot have"),
        (b"\xff", "is not a text file"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_without_a_usable_key_is_refused(written: bytes | None, message: str, tmp_path: Path) -> None:
    if written is not None:
        (tmp_path / "keys").write_bytes(written)
    with pytest.raises(UserError, match=message) as refused:
        read_keys(tmp_path / "keys")
    assert "words" not in str(refused.value)
