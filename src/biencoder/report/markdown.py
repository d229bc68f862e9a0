"""Texts of others in Markdown: they are shown, and never become markup, links, images or HTML."""

import re

from biencoder.terminal import escape

_MARKUP = re.compile(r"([\\`*\[\]<>|!])")


def inline(text: object) -> str:
    """Inside a line of prose or a cell of a table."""
    return _MARKUP.sub(r"\\\1", _one_line(text)).replace("&", "&amp;").replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def code(text: object) -> str:
    """As code within a line or a cell, in which a backtick or a bar would end it."""
    return f"`{_one_line(text).replace('`', chr(39)).replace('|', '/')}`"


def fenced(text: str, language: str = "text") -> str:
    """The text as a block. Its fence is longer than any row of backticks in the text."""
    fence = "`" * (1 + max((len(row) for row in re.findall(r"`{2,}", text)), default=2))
    return f"{fence}{language}\n{escape(text)}\n{fence}"


def _one_line(text: object) -> str:
    return escape(" ".join(str(text).split()))
