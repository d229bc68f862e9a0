"""The site of the documentation: MkDocs builds it without a warning, and a browser shows it without the network."""

import html
import io
import json
import re
import time
from collections.abc import Iterable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from browser import DARK, run, screenshot
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
HEIGHT = 900
WIDTHS = {"desktop": 1280, "phone": 390}
WAIT = "/wait"
PAGES = ("index.html", "tutorial.html", "train.html", "situations.html", "repository/SECURITY.html")
SEARCH = "index.html?q=hard+negatives"
# It shows that the measurement sees what sticks out, what a page asks for elsewhere, and what its scripts complain of.
BROKEN = """<!DOCTYPE html><title>broken</title><script src="https://elsewhere.example/a.js"></script>
<script>undefined_name</script>
<div class="md-content"><p style="white-space: nowrap">WIDE</p></div>""".replace("WIDE", "wide " * 300)

# Each page in a frame, because no window of a browser is as narrow as a phone. What lies in a box that scrolls may be
# wide; anything else must fit.
SHEET = """<!DOCTYPE html><meta charset="utf-8">
<style>body { margin: 0 } iframe { border: 0; position: absolute }</style>
<body>FRAMES
<script>
const scrolls = (each, until) => {
  for (; each !== until; each = each.parentElement)
    if (getComputedStyle(each).overflowX !== "visible") return true;
  return false;
};
const measure = frame => {
  const page = frame.contentDocument, content = page.querySelector(".md-content"), found = [];
  const { left, right } = content.getBoundingClientRect(), range = page.createRange();
  const out = box => box.width && (box.left < left - 1 || box.right > right + 1);
  const text = node => { range.selectNode(node); return range.getBoundingClientRect(); };
  if (page.documentElement.scrollWidth > frame.clientWidth) found.push("the page scrolls sideways");
  for (const each of content.querySelectorAll("*")) {
    const texts = [...each.childNodes].filter(node => node.nodeType === Node.TEXT_NODE);
    if (!scrolls(each, content) && (out(each.getBoundingClientRect()) || texts.some(node => out(text(node)))))
      found.push("sticks out: <" + each.tagName + "> " + each.textContent.trim().slice(0, 60));
  }
  const asked = frame.contentWindow.performance.getEntriesByType("resource").map(each => each.name);
  return { found, title: page.title, elements: content.querySelectorAll("*").length,
           elsewhere: asked.filter(each => !each.startsWith(location.origin)), asked: asked.length,
           hits: page.querySelectorAll(".md-search-result__link").length };
};
const report = tries => {
  const seen = [...document.querySelectorAll("iframe")].map(measure);
  const isOver = !tries || seen.some(each => each.hits);
  if (!isOver) return fetch("WAIT").then(() => report(tries - 1));  // the search's worker still reads
  document.body.textContent = JSON.stringify(seen);
};
if (location.hash) addEventListener("load", () => report(100));
</script>""".replace("WAIT", WAIT)


class Quiet(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == WAIT:  # the browser's clock runs ahead of its worker, but stands while it waits for an answer
            time.sleep(0.1)
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def frames(pages: Iterable[str]) -> list[tuple[str, int, int]]:
    """Pages, the left edges of their frames, and their widths."""
    shown = [(page, width) for page in pages for width in WIDTHS.values()]
    return [(page, sum(each for _, each in shown[:i]), width) for i, (page, width) in enumerate(shown)]


def sheet(pages: Iterable[str]) -> str:
    shown = (
        f'<iframe src="{page}" width="{width}" height="{HEIGHT}" style="left: {left}px"></iframe>'
        for page, left, width in frames(pages)
    )
    return SHEET.replace("FRAMES", "\n".join(shown))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the built site is served. A warning of MkDocs is an error."""
    pytest.importorskip("material", reason="needs pip install 'biencoder[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    (folder / "seen.html").write_text(sheet(PAGES[:2]), encoding="utf-8")
    (folder / "measured.html").write_text(sheet([*PAGES, "broken.html", SEARCH]), encoding="utf-8")
    (folder / "broken.html").write_text(BROKEN, encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_pages_fit_and_need_no_network_and_the_search_finds(address: str, tmp_path: Path) -> None:
    flags = ("--dump-dom", "--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=20000")
    shown, log = run(f"{address}/measured.html#measure", tmp_path, *flags, width=1400, height=1000)
    match = re.search(r"<body>(\[.*?\])</body>", shown, re.DOTALL)
    assert match is not None, shown[:2000]
    *pages, broken, _, search, _ = json.loads(html.unescape(match[1]))
    assert len(pages) == len(PAGES) * len(WIDTHS)
    assert all(page["elements"] > 30 and page["title"].endswith("biencoder") for page in pages)
    assert [each for page in pages for each in page["found"]] == []
    assert "the page scrolls sideways" in broken["found"]
    assert any(each.startswith("sticks out: <P> wide wide") for each in broken["found"])
    assert search["hits"] > 3
    assert all(page["elsewhere"] == [] and page["asked"] > 3 for page in pages)
    assert broken["elsewhere"] == ["https://elsewhere.example/a.js"]
    console = [line for line in log.splitlines() if "CONSOLE" in line]
    assert [line for line in console if "broken.html" not in line] == []
    assert any("undefined_name" in line for line in console)


def test_the_navigation_is_the_list_of_the_readme(address: str) -> None:
    with urlopen(f"{address}/check.html") as answer:
        page = answer.read().decode()
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Learn more")[2]
    listed = re.findall(r"^- \[docs/(\w+)\.md\]", readme, re.MULTILINE)
    assert len(listed) > 20
    in_order = dict.fromkeys(re.findall(r'href="(?:\./)?(\w+)\.html" class="md-nav__link', page))
    assert list(in_order) == ["index", *listed]


@pytest.mark.parametrize(("flags", "is_dark"), [((), False), ((DARK,), True)], ids=["light", "dark"])
def test_screenshots_show_pages_in_their_colours(
    address: str, flags: tuple[str, ...], is_dark: bool, tmp_path: Path
) -> None:
    shown = frames(PAGES[:2])
    wide = sum(width for _, _, width in shown)
    image = Image.open(
        io.BytesIO(screenshot(f"{address}/seen.html", tmp_path, *flags, width=wide, height=HEIGHT))
    ).convert("RGB")
    pixels = np.asarray(image).astype(int)
    for page, left, width in shown:
        tile = pixels[:, left : left + width]
        paper = np.median(tile[-100:].reshape(-1, 3), axis=0)
        assert (paper.max() < 64) if is_dark else (paper.min() > 240), page
        assert 0.01 < (np.abs(tile - paper).sum(axis=2) > 60).mean() < 0.7, page
