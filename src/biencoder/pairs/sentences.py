"""Words, sentences and headings of a text, by rules that need no language and no library.

Places are character offsets into the text, so each passage is a literal part of the text.
"""

# ruff: noqa: RUF001, RUF002  (the punctuation of other scripts is intended)

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Scripts without spaces between words: each character counts as a word.
_DENSE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_DENSE}]|[^\s{_DENSE}]+")

_CLOSING = "\"'”’»)\\]」』）】〉》"
_MARKS = ".!?…؟۔।॥։።"
# Each pattern looks at a character a bounded number of times: a document may repeat one character for a megabyte.
_END = re.compile(
    rf"(?P<dense>[。！？｡]+[{_CLOSING}]*)"  # needs no space after it
    rf"|(?<![{_MARKS}])(?P<mark>[{_MARKS}]+)[{_CLOSING}*_]*(?=\s)"
    r"|\n[ \t]*\n"
    r"|\n(?=[ \t]*(?:[-*+•>]|\d+[.)])[ \t])"  # a list, a quotation
)
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘«]*\Z")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # J, e.g, U.S
_NO_VOWEL = re.compile(r"[b-df-hj-np-tv-xzB-DF-HJ-NP-TV-XZ][b-df-hj-np-tv-xz]{1,3}")  # Dr, Mrs, vs, bzw

_BLOCK = re.compile(
    r"^[ \t]*(?P<fence>```|~~~)[^\n]*\n.*?(?:^[ \t]*(?P=fence)[^\n]*$|\Z)"
    r"|^[ \t]*\|[^\n]*(?:\n[ \t]*\|[^\n]*)*"  # a table
    r"|^[ \t]*<!--.*?(?:-->|\Z)"
    r"|^\#{1,6}[ \t]+(?P<heading>[^\n]+)$"
    r"|(?:\A|(?<=\n\n))(?P<underlined>[^\s\#>|*+-][^\n]*)\n(?:={3,}|-{3,})[ \t]*$",
    re.MULTILINE | re.DOTALL,
)

_MARKUP = (
    (re.compile(r"!\[[^\]]{0,1000}\]\([^)]{0,2000}\)"), ""),
    (re.compile(r"\[([^\]]{1,1000})\]\([^)]{0,2000}\)"), r"\1"),
    (re.compile(r"\*\*(\S(?:[^*]{0,2000}\S)?)\*\*"), r"\1"),
    (re.compile(r"`([^`]{1,2000})`"), r"\1"),
    (re.compile(r"\A\s*(?:(?:[-*+•>]|\d{1,9}[.)])\s+)+"), ""),
)
_HEADING_TAIL = re.compile(r" ?\{[#:][^}]{0,200}\} ?\Z| #+ ?\Z")


@dataclass(frozen=True, slots=True)
class Sentence:
    """Where a sentence is in its text.

    Attributes:
        start: offset of its first character.
        end: offset after its last character.
        is_prose: False for a heading, a table, a comment or a block of code; these stay whole.
    """

    start: int
    end: int
    is_prose: bool


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and the text below it, up to the next heading of any level."""

    heading: str
    body: str


def count_words(text: str) -> int:
    """The number of words; in a script without spaces, the number of characters."""
    return len(_WORD.findall(text))


def cut(text: str, words: int) -> str:
    """The first ``words`` words of a text."""
    for number, match in enumerate(_WORD.finditer(text), 1):
        if number == words:
            return text[: match.end()]
    return text


def plain(text: str) -> str:
    """The text in one line, without Markdown's links, images, emphasis and list marks."""
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def sentences(text: str) -> Iterator[Sentence]:
    """The sentences of a text in order, without the white space between them.

    A sentence ends at ``.``, ``!`` or ``?`` before white space, at ``。``, ``！`` or ``？`` anywhere, at the marks of
    other scripts, and at the end of a paragraph or list item. It does not end before a small letter, or after something
    that looks like an abbreviation: initials (``e.g.``) or a short word without a vowel (``Dr.``).
    """
    start = 0
    for block in _BLOCK.finditer(text):
        yield from _prose(text, start, block.start())
        yield Sentence(block.start(), block.end(), False)
        start = block.end()
    yield from _prose(text, start, len(text))


def sections(text: str) -> Iterator[Section]:
    """The section below each heading. Headings are ``# …`` lines and lines underlined with ``===`` or ``---``."""
    heading, start = "", 0
    for block in _BLOCK.finditer(text):
        line = block["heading"] or block["underlined"]
        if not line:
            continue
        if heading:
            yield Section(heading, text[start : block.start()].strip())
        heading = plain(_HEADING_TAIL.sub("", " ".join(line.split())))
        start = block.end()
    if heading:
        yield Section(heading, text[start:].strip())


def _prose(text: str, start: int, stop: int) -> Iterator[Sentence]:
    for match in _END.finditer(text, start, stop):
        if not match["mark"] or _ends(text, start, match):
            yield from _trimmed(text, start, match.end())
            start = match.end()
    yield from _trimmed(text, start, stop)


def _trimmed(text: str, start: int, end: int) -> Iterator[Sentence]:
    part = text[start:end]
    if stripped := part.strip():
        first = start + part.index(stripped)
        yield Sentence(first, first + len(stripped), True)


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether a sentence that began at ``start`` ends at this mark."""
    follows = text[match.end() : match.end() + 64].lstrip()
    if follows[:1].islower():
        return False
    if match["mark"] != ".":
        return True
    word = _LAST_WORD.search(text, max(start, match.start() - 32), match.start())
    before = word[0] if word else ""
    is_number = before.isdecimal() and not text[start : match.start()].removesuffix(before).strip()
    is_short = bool(_INITIALS.fullmatch(before)) or (bool(_NO_VOWEL.fullmatch(before)) and not before.isupper())
    return not (is_number or is_short)
