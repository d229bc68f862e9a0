"""The page holds what it should, nothing of the data drives it, and it needs nothing else."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hostile_run import HOSTILE, hostile_run
from runs import small_run

from biencoder.errors import UserError
from biencoder.report.html.page import LONGEST, foreign, write_page
from biencoder.report.recording import SHOWN_PASSAGES, SHOWN_QUERIES, TEXT
from biencoder.training.run import train

VOID = {"meta", "link", "br", "img", "hr", "input", "base"}
OURS = {
    "html", "head", "meta", "title", "style", "body", "header", "section", "footer", "div", "p", "h1", "h2", "h3", "h4",
    "b", "strong", "small", "span", "bdi", "code", "pre", "ul", "ol", "li", "dl", "dt", "dd", "details", "summary",
    "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "svg", "defs", "g", "path", "clipPath", "rect",
    "use", "text",
}  # fmt: skip


class Outline(HTMLParser):
    """The tags of a page, which must be closed in order, its attributes and its text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def outline(page: Path) -> Outline:
    read = Outline()
    read.feed(page.read_text(encoding="utf-8"))
    read.close()
    assert read.open == []
    return read


def said(page: Path) -> str:
    return " ".join(" ".join(outline(page).text).split())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model gets better."""
    folder = tmp_path_factory.mktemp("plain")
    train(small_run(folder, epochs=6))
    return folder / "out"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_run(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def changed(plain: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the run with a file changed."""

    def change(name: str, by: Callable[[Any], Any]) -> Path:
        copy = tmp_path / "changed"
        shutil.copytree(plain, copy, ignore=shutil.ignore_patterns("checkpoints"))
        (copy / name).write_text(json.dumps(by(json.loads((copy / name).read_text()))))
        return copy

    return change


def test_a_run_ends_with_its_page(plain: Path) -> None:
    text = said(plain / "report.html")
    assert "The tuned model is better: +" in text
    for heading in (
        "Before and after", "Training", "Right answers against the best wrong ones", "Which queries won, and",
        "The training data", "Cut by length", "Time and memory", "Use the model", "Settings",
    ):  # fmt: skip
        assert heading in text, heading
    assert "rank beyond 10 → 1" in text
    assert "right answer" in text
    assert "held-out: 6 queries" in text
    assert "queries cut at 16 tokens" in text
    assert re.search(r"peak memory \d+(\.\d+)? [MG]B of the whole process, at most", text)
    assert 'encoder = Encoder.load("out")' in text
    assert "learning-rate 0.001" in text
    assert (plain / "report.html").read_text().count("<svg") == 8


def test_the_page_is_a_function_of_the_files(plain: Path, tmp_path: Path) -> None:
    write_page([plain], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (plain / "report.html").read_bytes()


@pytest.mark.parametrize("runs", [1, 2])
def test_hostile_texts_leave_the_page_whole(runs: int, hostile: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_page([hostile] * runs, page)
    read = outline(page)
    assert {tag.lower() for tag in OURS} >= read.tags
    assert not {name for name, _ in read.attributes if name.startswith("on")}
    text = page.read_text(encoding="utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", text)
    assert "x" * (LONGEST + 1) not in text
    assert r"\u202e" in " ".join(read.text)


def test_all_hostile_texts_at_once(changed: Callable[..., Path], tmp_path: Path) -> None:
    """Ten won and ten lost, each text as long as it can be, of the characters that take most room."""

    def fill(record: dict[str, Any]) -> dict[str, Any]:
        texts = [(text * TEXT)[:TEXT] for text in (*HOSTILE, "\U000e0041", '"', "字")]
        one = record["changes"]["won"][0]
        changes = []
        for number in range(SHOWN_QUERIES):
            text = texts[number % len(texts)]
            passages = [{"text": each, "score": 1e9, "relevant": True} for each in texts][:SHOWN_PASSAGES]
            answers = [{"text": each, "before": 10, "after": None} for each in texts][:3]
            found = {"query": text, "answers": answers, "found_before": passages, "found_after": passages}
            changes.append(one | found | {"more": 10**9})
        return record | {"changes": record["changes"] | {"won": changes, "lost": changes}}

    folder = changed("report.json", fill)
    write_page([folder], tmp_path / "report.html")
    assert {tag.lower() for tag in OURS} >= outline(tmp_path / "report.html").tags
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


@pytest.mark.parametrize("runs", [1, 3])
def test_the_page_needs_nothing_else_and_runs_nothing(runs: int, plain: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_page([plain] * runs, page)
    read, text = outline(page), page.read_text(encoding="utf-8")
    assert all(value.startswith("#") for name, value in read.attributes if name in ("href", "xlink:href", "src"))
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text
    ids = [value for name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in read.attributes if name == "href"} <= set(ids)
    assert not re.search(r"#0a0b", text)  # every colour of a chart has become one of the page


def test_runs_side_by_side(plain: Path, hostile: Path, changed: Callable[..., Path], tmp_path: Path) -> None:
    other = changed("eval.json", lambda figures: figures)
    settings = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(settings.replace("learning-rate: 0.001", "learning-rate: 0.002"))
    write_page([plain, other], tmp_path / "report.html")
    text = said(tmp_path / "report.html")
    assert "2 runs side by side" in text
    assert "learning-rate 0.001 0.002" in text
    assert "do not compare" not in text
    write_page([plain, hostile], tmp_path / "report.html")
    assert "These runs were evaluated on different data, so their figures do not compare." in said(
        tmp_path / "report.html"
    )


def test_more_runs_than_there_are_colours(plain: Path, tmp_path: Path) -> None:
    write_page([plain] * 10, tmp_path / "report.html")
    assert "run 10" in said(tmp_path / "report.html")


def test_a_run_of_an_older_version_shows_what_it_has(plain: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(plain, older)
    (older / "report.json").unlink()
    write_page([older], tmp_path / "report.html")
    text = said(tmp_path / "report.html")
    assert "It did not write report.json" in text
    assert "The tuned model is better" in text
    assert "Which queries won" not in text
    write_page([older, plain], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("name", "by", "message"),
    [
        ("eval.json", lambda x: x | {"comparison": x["comparison"][1:]}, "comparison should be by ndcg@10 too"),
        ("eval.json", lambda _: [], "it should be an object"),
        ("report.json", lambda x: x | {"rows": "many"}, "rows should be int"),
        ("report.json", lambda x: x | {"similarity": x["similarity"] | {"edges": [0.5]}}, "one more edge than counts"),
        ("report.json", lambda x: x | {"changes": x["changes"] | {"queries": 0}}, "of one query or more"),
    ],
)
def test_a_damaged_file_is_named(
    name: str, by: Callable[[Any], Any], message: str, changed: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(name) + f": not the file that biencoder wrote: .*{message}"):
        write_page([changed(name, by)], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_foreign_text_stands_apart() -> None:
    assert foreign("<b>&\u202e\x00") == r"<bdi>&lt;b&gt;&amp;\u202e\x00</bdi>"
    assert len(foreign("x" * 10_000)) == LONGEST + len("<bdi></bdi>")


def test_a_page_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no such font")

    monkeypatch.setattr("biencoder.report.written.write_page", fail)
    monkeypatch.setattr(logging.getLogger("biencoder"), "propagate", True)
    assert train(small_run(tmp_path, max_steps=1)) is not None
    assert "report.html could not be made (no such font); biencoder report " in caplog.text
    assert (tmp_path / "out" / "report.json").is_file()
