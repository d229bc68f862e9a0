"""The message to a language model, and the questions in its answer."""

# ruff: noqa: RUF001  (the punctuation of other scripts is intended)

import re
from pathlib import Path

from biencoder.data.text import fold
from biencoder.errors import UserError
from biencoder.pairs.methods import is_query
from biencoder.pairs.sentences import plain

PLACEHOLDER = "{passage}"
DEFAULT_PROMPT = Path(__file__).with_name("prompt.txt")
QUESTION_LEAST = 3  # words

_PLACEHOLDERS = re.compile(r"\{[^\W\d]\w*\}")
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_LABEL = re.compile(r"\A(?:question|query|q)\s*\d*\s*[:.)]\s*", re.IGNORECASE)
_QUOTES = "\"'“”„«»「」"
_QUESTION_MARKS = ("?", "？", "؟", "⸮")


def load_prompt(path: Path | None) -> str:
    """The text of a prompt file, or of the one that comes with biencoder.

    Raises:
        UserError: the file cannot be read, does not have ``{passage}`` exactly once, or has another placeholder.
    """
    if path is None:
        return DEFAULT_PROMPT.read_text(encoding="utf-8").strip()
    try:
        prompt = path.read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise UserError(f"--prompt-file: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt-file {path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    found = _PLACEHOLDERS.findall(prompt)
    if others := [name for name in found if name != PLACEHOLDER]:
        raise UserError(f"--prompt-file {path}: unknown placeholder {others[0]}; the only one is {PLACEHOLDER}")
    if len(found) != 1:
        raise UserError(f"--prompt-file {path}: {PLACEHOLDER} must appear once, not {len(found)} times")
    return prompt


def fill(prompt: str, passage: str, questions: int) -> str:
    """The message for a passage: the prompt, and the form that `parse` needs the answer to have."""
    form = "one line with the question" if questions == 1 else f"{questions} lines, a question each"
    return f"{prompt.replace(PLACEHOLDER, passage)}\n\nAnswer with {form}, and nothing else: no numbers, no answers."


def parse(answer: str, passage: str, most: int) -> list[str]:
    """The questions in an answer, at most ``most``; the list is empty if no line could be a question.

    Numbers, list marks, quotation marks and the text between ``<think>`` and ``</think>`` are removed. If any line ends
    in a question mark, only such lines count. Otherwise every line counts that does not end in a colon, because not
    every language or prompt asks with a mark. A line that is in the passage word for word is not a question.
    """
    lines = [_question(line) for line in _THOUGHTS.sub("", answer).splitlines()]
    marked = [line for line in lines if line.endswith(_QUESTION_MARKS)]
    folded = fold(passage)
    found: dict[str, str] = {}
    for line in marked or lines:
        if is_query(line, QUESTION_LEAST) and not line.endswith((":", "：")) and fold(line) not in folded:
            found.setdefault(fold(line), line)
    return list(found.values())[:most]


def _question(line: str) -> str:
    return _LABEL.sub("", plain(line).strip(_QUOTES)).strip(_QUOTES).strip()
