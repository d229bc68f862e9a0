"""Show other people's texts in Markdown, so that they never become markup, links, images or HTML."""

import re

from biencoder.terminal import escape

_MARKUP = re.compile(r"([\\`*\[\]<>|!])")


def inline(text: object) -> str:
    """The text for a line of prose or a cell of a table."""
    return _MARKUP.sub(r"\\\1", _one_line(text)).replace("&", "&amp;").replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def code(text: object) -> str:
    """The text as code within a line or a cell, without backticks and bars, which would end it."""
    return f"`{_one_line(text).replace('`', chr(39)).replace('|', '/')}`"


def fenced(text: str, language: str = "text") -> str:
    """The text as a block. Its fence is longer than any row of backticks in the text."""
    fence = "`" * (1 + max((len(row) for row in re.findall(r"`{2,}", text)), default=2))
    return f"{fence}{language}\n{escape(text)}\n{fence}"


def _one_line(text: object) -> str:
    return escape(" ".join(str(text).split()))
