"""A browser shows the report: whatever the data say, in light and dark, wide and narrow."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import DARK, misfits, screenshot
from hostile_run import hostile_run
from PIL import Image

from biencoder.report.html.page import write_page

WIDTHS = {"desktop": 1200, "phone": 400}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    one, two = hostile_run(folder / "one"), folder / ("two " + "W" * 200)
    shutil.copytree(one, two)
    settings = (two / "config.yaml").read_text(encoding="utf-8")
    (two / "config.yaml").write_text(settings.replace("epochs: 2", "epochs: 3"), encoding="utf-8")
    return [one, two]


@pytest.fixture(scope="module", params=["one run", "two runs"])
def page(request: pytest.FixtureRequest, runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(runs[:1] if request.param == "one run" else runs, path)
    return path


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_no_text_overflows(page: Path, width: int, tmp_path: Path) -> None:
    seen = misfits(page, tmp_path, width=width)
    assert seen["width"] == width
    assert seen["elements"] > 200
    assert seen["title"].endswith("biencoder report")
    assert seen["found"] == []


def test_the_measurement_sees_a_text_that_overflows(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wide = '<section><p style="white-space: nowrap">' + "wide " * 200 + "</p></section><footer>"
    (tmp_path / "wide.html").write_text(text.replace("<footer>", wide), encoding="utf-8")
    found = misfits(tmp_path / "wide.html", tmp_path, width=1200)["found"]
    assert any(each.startswith("wider than its place: <P> wide wide") for each in found)
    assert "the page scrolls sideways" in found


@pytest.mark.parametrize(("flags", "is_dark"), [((), False), ((DARK,), True)], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_screenshot_shows_the_page_in_its_colours(
    page: Path, width: int, flags: tuple[str, ...], is_dark: bool, tmp_path: Path
) -> None:
    image = Image.open(io.BytesIO(screenshot(page.as_uri(), tmp_path, *flags, width=width))).convert("RGB")
    assert image.size == (width, 1600)
    pixels = np.asarray(image)
    background = pixels[2, 2]
    assert (background.max() < 64) if is_dark else (background.min() > 240)
    written = (np.abs(pixels.astype(int) - background).sum(axis=2) > 60).mean()
    assert 0.01 < written < 0.6
