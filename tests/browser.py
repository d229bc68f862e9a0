"""A real browser without a window: what it draws of a page, and which texts do not fit."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no network, whatever the page asks for
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"

# Every element that is wider than its place, and every label of a chart that lies outside of it or on another one.
MEASURE = """
<script>
for (const each of document.querySelectorAll("details")) each.open = true;
const found = [];
const say = (what, each) => found.push(what + ": <" + each.tagName + "> " + each.textContent.trim().slice(0, 60));
const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
const unseen = each => each.closest("thead") && getComputedStyle(each.closest("thead")).position === "absolute";
for (const each of document.body.querySelectorAll("*")) {
  const box = each.getBoundingClientRect();
  if (!box.width || unseen(each)) continue;
  if (each.clientWidth && each.scrollWidth > each.clientWidth + 1) say("wider than its place", each);
  if (box.left < -1 || box.right > innerWidth + 1) say("outside of the page", each);
}
for (const chart of document.querySelectorAll("svg")) {
  const outer = chart.getBoundingClientRect(), labels = [...chart.querySelectorAll("text")];
  labels.forEach((label, i) => {
    const box = label.getBoundingClientRect();
    if (box.left < outer.left - 1 || box.right > outer.right + 1 || box.bottom > outer.bottom + 1)
      say("outside of its chart", label);
    if (labels.slice(i + 1).some(other => !apart(box, other.getBoundingClientRect()))) say("on another label", label);
  });
}
if (document.documentElement.scrollWidth > innerWidth) found.push("the page scrolls sideways");
const elements = document.querySelectorAll("*").length;
parent.document.body.textContent = JSON.stringify({ found, elements, width: innerWidth, title: document.title });
</script>
"""
FRAME = (
    '<!DOCTYPE html><meta charset="utf-8"><body><iframe style="border: 0" width="{}" height="900" srcdoc="{}"></iframe>'
)


def browser() -> str:
    """The browser's program; a test without one is skipped."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    return path


def run(address: str, work: Path, *flags: str, width: int, height: int) -> tuple[str, str]:
    """What the browser prints of a page in a window of that size, and what it logs."""
    words = [browser(), *FLAGS, f"--user-data-dir={work / 'profile'}", f"--window-size={width},{height}", *flags]
    done = subprocess.run([*words, address], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def screenshot(address: str, work: Path, *flags: str, width: int = 1100, height: int = 1600) -> bytes:
    """The PNG of the upper part of a page."""
    path = work / "screenshot.png"
    run(address, work, *flags, f"--screenshot={path}", width=width, height=height)
    return path.read_bytes()


def misfits(page: Path, work: Path, *, width: int) -> dict[str, Any]:
    """Which texts do not fit (``found``), how many ``elements`` the page has, its ``width`` and its ``title``.

    A copy of the page without its ban on scripts measures itself. It stands in a frame, because no window of a browser
    is as narrow as a phone.
    """
    text = page.read_text(encoding="utf-8")
    text, bans = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert bans == 1
    copy = work / "measured.html"
    measured = html.escape(text.replace("</body>", f"{MEASURE}</body>"))
    copy.write_text(FRAME.format(width, measured), encoding="utf-8")
    shown, _ = run(copy.as_uri(), work, "--dump-dom", width=1400, height=1000)
    match = re.search(r"<body>(\{.*?\})</body>", shown, re.DOTALL)
    assert match is not None, shown[:2000]
    read: dict[str, Any] = json.loads(html.unescape(match[1]))
    return read
