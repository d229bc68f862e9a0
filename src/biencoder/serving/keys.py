"""The API keys that clients may use. They come from a file or from the environment, and are never shown."""

import hmac
import os
from pathlib import Path

from biencoder.errors import UserError

VARIABLE = "BIENCODER_SERVE_API_KEY"


class Keys:
    """Some API keys; with none, every client is let in.

    Args:
        keys: the keys.
    """

    def __init__(self, keys: list[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def admit(self, authorization: str) -> bool:
        """Whether a client with this ``Authorization`` header is let in. How long it takes says nothing of the keys."""
        scheme, _, given = authorization.partition(" ")
        matches = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        return not self._keys or (scheme.lower() == "bearer" and any(matches))


def read_keys(path: Path | None) -> Keys:
    """The keys of a file, one per line, or else the one of :data:`VARIABLE`.

    Raises:
        UserError: the file cannot be read or holds no key, or a key has characters that a header cannot carry.
    """
    if path is None:
        keys, where = [os.environ.get(VARIABLE, "")], VARIABLE
    else:
        keys, where = _lines(path), f"--api-key-file {path}"
    found = [key.strip() for key in keys if key.strip()]
    if path is not None and not found:
        raise UserError(f"{where}: holds no key; write one per line")
    if not all(key.isascii() and key.isprintable() and " " not in key for key in found):
        raise UserError(f"{where}: an API key holds characters that a key cannot have")  # without showing them
    return Keys(found)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--api-key-file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--api-key-file {path}: is not a text file") from None
