"""Documents as a stream: rows of a file with title and text, Markdown files, or a folder of such files."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from biencoder.data.files.lines import NotTextError, decode, read_lines
from biencoder.data.text import fold, text_hash
from biencoder.errors import UserError
from biencoder.retrieval.texts import JSON_SUFFIXES, read_texts

MARKDOWN_SUFFIXES = (".md", ".markdown")
FOLDER_SUFFIXES = (*MARKDOWN_SUFFIXES, ".txt")

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:(.+)$", re.MULTILINE)
_TITLE_LINE = re.compile(r"\s*#([ \t][^\n]+)(?:\n|\Z)")


@dataclass(frozen=True, slots=True)
class Document:
    """A document.

    Attributes:
        title: the title; may be empty.
        text: the text without the title.
    """

    title: str
    text: str

    @property
    def key(self) -> int:
        """64 bits that are equal for documents that differ only in case and white space."""
        return text_hash(fold(f"{self.title}\n{self.text}"))

    @property
    def whole(self) -> str:
        """Title and text as search and evaluation see them: with a space between."""
        return f"{self.title} {self.text}" if self.title else self.text


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a file or folder in order, one at a time.

    In a folder, each ``.txt`` or ``.md`` file is a document. Files of subfolders count too; hidden files do not. The
    order is by name. A Markdown file takes its title from the front matter or from its first ``#`` line. This function
    reads any other file like :func:`~biencoder.retrieval.texts.read_texts`, but keeps title and text apart.

    Raises:
        UserError: the file does not exist, the folder has no documents, or a file or line cannot be read.
    """
    if path.is_dir():
        empty = True
        for file in _files(path):
            empty = False
            yield _read_file(file)
        if empty:
            raise UserError(f"--documents {path}: the folder holds no {' or '.join(FOLDER_SUFFIXES)} file")
    elif path.name.lower().endswith(MARKDOWN_SUFFIXES):
        yield _read_file(path)
    elif path.name.lower().removesuffix(".gz").endswith(JSON_SUFFIXES):
        yield from _read_json(path)
    else:
        yield from (Document("", row.text) for row in read_texts(path))


def _files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (
            Path(place, name) for name in sorted(names) if name[0] != "." and name.lower().endswith(FOLDER_SUFFIXES)
        )


def _read_file(path: Path) -> Document:
    lines = []
    for number, line in read_lines(path):
        try:
            lines.append(decode(line))
        except NotTextError as error:
            raise UserError(f"{path}:{number}: {error}") from error
    text = _unix("".join(lines))
    return _from_markdown(text) if path.name.lower().endswith(MARKDOWN_SUFFIXES) else Document("", text)


def _from_markdown(text: str) -> Document:
    title = ""
    if front := _FRONT_MATTER.match(text):
        text = text[front.end() :]
        if named := _FRONT_TITLE.search(front[1]):
            title = named[1].strip(" \t").strip("\"'")
    if line := _TITLE_LINE.match(text):
        heading = line[1].strip(" \t").rstrip("#").strip(" \t")
        if heading and fold(heading) == fold(title or heading):
            title, text = heading, text[line.end() :]
    return Document(title, text)


def _read_json(path: Path) -> Iterator[Document]:
    # `read_texts` raises the error for a bad row; this function keeps title and text apart.
    rows = read_texts(path)
    for _, line in read_lines(path):
        if line.strip():
            next(rows)
            row = orjson.loads(line)
            yield Document(" ".join((row.get("title") or "").split()), _unix(row["text"]))


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")
