"""A matplotlib figure as SVG inside of a page, in the colours of that page.

A figure is drawn with colours that stand for roles. In the SVG, each becomes a CSS variable, so that the same drawing
serves a light page, a dark page and paper.
"""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from biencoder import terminal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = 8  # colours of runs that stand side by side
ROLES = ("ink", "muted", "grid", "before", "after", "other", *(f"run{i}" for i in range(RUNS)))
COLOURS = {role: f"#0a0b{number:02x}" for number, role in enumerate(ROLES)}

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be found, copied and read aloud, and takes little room
    "svg.hashsalt": "biencoder",  # or ids would be random
    "text.parse_math": False,
    "font.size": 11,
    "axes.edgecolor": COLOURS["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": COLOURS["muted"],
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def draw(name: str, label: str, size: tuple[int, int], paint: "Callable[[Figure], None]") -> Markup:
    """An ``<svg>`` element.

    Args:
        name: a word that no other chart of the page has; it makes ids unique.
        label: what the chart shows, for people who do not see it.
        size: width and height in CSS pixels; a page may scale it.
        paint: draws on the empty figure.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    width, height = size
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a chart must not depend on what somebody prefers on their own machine
        settings: Any = matplotlib.rcParams  # some releases type the names of all settings, and some do not
        settings.update(_SETTINGS)
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        paint(figure)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(file, metadata=nothing)
    return Markup(_inlined(file.getvalue(), name, label, size))


def plain(text: str, most: int = 24) -> str:
    """A label that fits into a chart and drives nothing."""
    return terminal.escape(terminal.shorten(text, most))


def _inlined(svg: str, name: str, label: str, size: tuple[int, int]) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", body)
    body = re.sub(r"(url\(|href=\")#", rf"\g<1>#{name}-", body).replace("xlink:href", "href")
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)  # the page has its own fonts
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    for role, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{role})")
    body = re.sub(r"\n\s*", "\n", body)
    width, height = size
    opening = (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" '
        f'style="max-width: {width * 1.25:g}px">'
    )
    return re.sub(r"<svg\b[^>]*>", lambda _: opening, body, count=1)
