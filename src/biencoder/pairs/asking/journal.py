"""Stores paid answers as they arrive, so that a killed run does not ask for them again.

The key of a line is a digest of all that was sent for it (prompt, passage, model). So an answer is used again exactly
if the same message would be sent again to the same model, whatever else has changed.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import orjson
import xxhash

from biencoder.errors import UserError
from biencoder.files import being_written, claim

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        text: the answer; empty if there was none.
        fault: why there was none, in a word or two; else empty.
    """

    text: str
    fault: str = ""


def digest(model: str, content: str) -> str:
    """32 hex digits over the model's name and the message sent to it."""
    return xxhash.xxh3_128_hexdigest(f"{model}\n{content}".encode())


class Journal:
    """A file of answers beside the output. Texts stay in the file; memory holds one offset per line.

    Args:
        path: the file, created if missing. A last line that a kill cut off is dropped.

    Raises:
        UserError: another process writes to the file, or it is not a journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            claim(self._file.fileno(), path, being_written(path))
            self._places = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._places and self.path.exists():
            self.path.unlink()  # nothing was paid for
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> Answer:
        self._file.seek(self._places[key])
        row = orjson.loads(self._file.readline())
        return Answer(row["text"], row["fault"])

    def add(self, key: str, answer: Answer) -> None:
        """Append an answer. It is on disk when this returns."""
        place = self._file.seek(0, os.SEEK_END)
        row = {"key": key, "text": answer.text, "fault": answer.fault}
        self._file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._places[key] = place

    def remove(self) -> None:
        """Delete the file, once the output is complete."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, int]:
        places: dict[str, int] = {}
        whole = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                places[orjson.loads(line)["key"]] = whole
            except (orjson.JSONDecodeError, KeyError, TypeError):
                raise UserError(
                    f"{self.path}:{number}: is not an answer of a language model; remove the file"
                ) from None
            whole += len(line)
        self._file.truncate(whole)
        return places
