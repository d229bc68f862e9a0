import re

import pytest

from biencoder.report.markdown import code, fenced, inline

HOSTILE = "a <img src=x onerror=alert(1)> | ![b](http://h/p.png) [c](javascript:d) `e` **f** &lt; \x1b[2J\u202eg\nh"


def rendered(markdown: str) -> str:
    """HTML by the CommonMark renderer that rich brings, tables included, with HTML in Markdown allowed."""
    markdown_it = pytest.importorskip("markdown_it")
    return str(markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))


def tags(html: str) -> set[str]:
    return set(re.findall(r"<(\w+)", html))


def test_a_text_in_a_line_is_shown_and_makes_no_markup() -> None:
    html = rendered(f"On {inline(HOSTILE)}.")
    assert tags(html) == {"p"}
    assert "&lt;img src=x onerror=alert(1)&gt; | ![b](http://h/p.png) [c](javascript:d) `e` **f** &amp;lt;" in html
    assert r"\x1b[2J\u202eg h" in html


def test_a_text_in_a_cell_stays_there() -> None:
    html = rendered(f"| a | b |\n| --- | --- |\n| {inline(HOSTILE)} | {code(HOSTILE)} |\n")
    assert tags(html) == {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert html.count("<td>") == 2


@pytest.mark.parametrize("text", ["```\n<script>", "a\n````text\nb", "plain", "``` `````` ```"])
def test_a_block_ends_where_it_was_meant_to(text: str) -> None:
    html = rendered(f"{fenced(text, 'yaml')}\n\nafter")
    assert tags(html) == {"pre", "code", "p"}
    assert "after" in html.partition("</pre>")[2]
    assert "\x1b" not in fenced("\x1b[2J")
