"""Makes a site of these pages, without a second copy of anything: MkDocs calls the functions named ``on_…``.

The README is the front page and its list "Learn more" is the navigation. A link to a file outside of ``docs/`` works in
a clone and on GitHub; on the site it leads to a page made from that file.
"""

import os
import re
from functools import cache
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.lexers.special import TextLexer
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parents[1]
README = PurePosixPath("README.md")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(?=[)#])")
LINE = re.compile(r"(?<=#L)(?=\d+\))")


def place(path: PurePosixPath) -> str:
    """Where the site has a file of the repository."""
    if path == README:
        return "index.md"
    if path.parts[0] == "docs":
        return str(path.relative_to("docs"))
    return f"repository/{path}" + ("" if path.suffix == ".md" else ".md")


def linked(path: PurePosixPath, link: str) -> PurePosixPath:
    """The file of the repository that a link in another file leads to."""
    return PurePosixPath(os.path.normpath(path.parent / link))


@cache
def text_of(path: PurePosixPath) -> str:
    """What a file of the repository says."""
    return (ROOT / path).read_text(encoding="utf-8")


def outside(paths: set[PurePosixPath]) -> set[PurePosixPath]:
    """The files outside of ``docs/`` that these pages link to, and those that these link to in turn."""
    found: set[PurePosixPath] = set()
    while paths:
        pages = {path for path in paths if path.suffix == ".md"}
        links = {linked(path, link) for path in pages for link in LINK.findall(text_of(path))}
        paths = {path for path in links - found if path.parts[0] != "docs" and (ROOT / path).is_file()}
        found |= paths
    return found


def as_page(path: PurePosixPath) -> str:
    """Markdown that shows a file. It stays out of the search, which is for the documentation."""
    before = "---\nsearch:\n  exclude: true\n---\n\n"
    if path.suffix == ".md":
        nested = re.sub(r"^  (?=- )", "    ", with_links(path, text_of(path)), flags=re.MULTILINE)  # as MkDocs indents
        return before + nested
    try:
        lexer = get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    shown = highlight(text_of(path), lexer, HtmlFormatter(cssclass="highlight", lineanchors="L"))
    return f"{before}# {path}\n\n{shown}"


def with_links(path: PurePosixPath, text: str) -> str:
    """The text of a page, whose links lead to where the site has those files."""
    folder = PurePosixPath(place(path)).parent
    moved = LINK.sub(lambda link: os.path.relpath(place(linked(path, link[1])), folder), text)
    return LINE.sub("-", moved)


def front_page() -> str:
    """The README, in which a page is called by its title."""

    def title(link: re.Match[str]) -> str:
        return text_of(PurePosixPath(link[0])).partition("\n")[0].removeprefix("# ")

    return re.sub(r"(?<=\[)docs/\w+\.md(?=\])", title, with_links(README, text_of(README)))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the navigation from the README."""
    _, _, rest = text_of(README).partition("## Learn more\n")
    learn_more, _, _ = rest.partition("\n## ")
    config.nav = [{"Overview": "index.md"}]
    for title, pages in re.findall(r"\*\*(.+)\*\*\n\n((?:[- ] .+\n)+)", learn_more):
        config.nav.append({title: re.findall(r"^- \[.+?\]\(docs/(.+?)\)", pages, re.MULTILINE)})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the front page, and the files that pages link to."""
    pages = {PurePosixPath("docs") / file.src_uri for file in files.documentation_pages()}
    for path in outside(pages | {README}) - {README}:
        files.append(File.generated(config, place(path), content=as_page(path)))
    files.append(File.generated(config, place(README), content=front_page()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links out of ``docs/`` lead to those files."""
    if page.file.generated_by is not None:
        return markdown
    return with_links(PurePosixPath("docs") / page.file.src_uri, markdown)
