"""The charts of a report. They hold our own words only: names and texts of other people stand around them, in HTML."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from biencoder.report.curves import Curves, Floats
from biencoder.report.html.svg import COLOURS, RUNS, draw, plain
from biencoder.report.record import Means, Scores, Similarity
from biencoder.retrieval.comparing.comparison import Comparison
from biencoder.retrieval.evaluate import DECIDING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

WIDTH = 440
LOW = 220  # height of a curve
ROW = 34  # height of a measure
BAR = 0.36
EDGE = 0.05  # room beside the curves, or the first labels of both axes would meet
BETWEEN_DASHES = ("-", "--", ":")  # for more runs than there are colours


@dataclass(frozen=True, eq=False)
class Line:
    """A curve of a chart, in the colour of a role."""

    x: Floats
    y: Floats
    colour: str
    dashes: str = "-"
    pale: bool = False
    dots: bool = False


def colour_of(number: int) -> str:
    """The role of a run's colour, if several stand side by side."""
    return f"run{number % RUNS}"


def dashes_of(number: int) -> str:
    """How the curve of a run is dashed."""
    return BETWEEN_DASHES[number // RUNS % len(BETWEEN_DASHES)]


def before_and_after(comparisons: Sequence[Comparison], means: dict[str, Means]) -> Markup:
    """Bars of every measure, with the intervals of the means where they are known."""

    def paint(figure: "Figure") -> None:
        axes = _rows(figure, [each.measure for each in comparisons])
        for place, each in enumerate(comparisons):
            for role, value, shift in (("before", each.before, -BAR / 2), ("after", each.after, BAR / 2)):
                axes.barh(place + shift, value, BAR, color=COLOURS[role])
                if (known := means.get(each.measure)) is not None:
                    bounds = getattr(known, role)
                    axes.plot([bounds.low, bounds.high], [place + shift] * 2, color=COLOURS["ink"], linewidth=1.2)
        axes.set_xlim(0, 1)

    deciding = next(each for each in comparisons if each.measure == DECIDING)
    label = (
        f"Bars of each measure before and after. {DECIDING}: {deciding.before:.4f} before, {deciding.after:.4f} after."
    )
    return draw("measures", label, (WIDTH, 46 + ROW * len(comparisons)), paint)


def differences(comparisons: Sequence[Comparison]) -> Markup:
    """The difference of every measure with its interval, against a line at 0."""

    def paint(figure: "Figure") -> None:
        axes = _rows(figure, [each.measure for each in comparisons])
        axes.axvline(0, color=COLOURS["muted"], linewidth=1)
        for place, each in enumerate(comparisons):
            colour = COLOURS["after" if each.difference >= 0 else "other"]
            axes.plot([each.low, each.high], [place, place], color=colour, linewidth=2.2)
            axes.plot([each.difference], [place], "o", color=colour, markersize=6)
        widest = max(max(abs(each.low), abs(each.high)) for each in comparisons) or 0.1
        lowest, highest = min(each.low for each in comparisons), max(each.high for each in comparisons)
        axes.set_xlim(min(lowest - 0.08 * widest, -0.08 * widest), max(highest + 0.08 * widest, 0.08 * widest))

    said = "; ".join(f"{each.measure} {each.difference:+.4f}" for each in comparisons)
    return draw("differences", f"Differences with 95% intervals: {said}", (WIDTH, 46 + ROW * len(comparisons)), paint)


def _rows(figure: "Figure", names: Sequence[str]) -> "Axes":
    """Axes with one row for each name, the first on top."""
    height = figure.get_figheight() * 72
    axes = figure.add_axes((108 / WIDTH, 28 / height, 1 - 122 / WIDTH, 1 - 38 / height))
    short = [plain(name.replace(f"{DECIDING}, ", "").replace("dimensions", "dims"), 18) for name in names]
    axes.set_yticks(range(len(names)), short)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(_few(5))
    axes.xaxis.set_major_formatter(_number)
    return axes


def lines(name: str, label: str, curves: Sequence[Line]) -> Markup:
    """Curves over the steps of a run."""

    def paint(figure: "Figure") -> None:
        axes = figure.add_axes((58 / WIDTH, 42 / LOW, 1 - 72 / WIDTH, 1 - 54 / LOW))
        for each in curves:
            alone = np.isfinite(each.y).sum() == 1  # a line of one point would not be seen
            axes.plot(
                each.x,
                each.y,
                each.dashes,
                color=COLOURS[each.colour],
                alpha=0.35 if each.pale else 1,
                linewidth=1 if each.pale else 1.8,
                marker="o" if each.dots or (alone and not each.pale) else None,
                markersize=4.5,
            )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(_few(5, whole=True))
        axes.xaxis.set_major_formatter(_count)
        axes.yaxis.set_major_locator(_few(5))
        axes.yaxis.set_major_formatter(_number)
        axes.margins(EDGE, 0.08)

    return draw(name, label, (WIDTH, LOW), paint)


def curves_of(curves: Sequence[Curves]) -> dict[str, Markup]:
    """Loss, learning rate, gradient norm and evaluations: of one run, or of several over each other."""
    alone = len(curves) == 1

    def over_each_other(values: Callable[[Curves], Floats], *, evaluated: bool = False) -> list[Line]:
        return [
            Line(
                each.evaluated_steps if evaluated else each.steps,
                values(each),
                "after" if alone else colour_of(number),
                dashes_of(number),
                dots=evaluated,
            )
            for number, each in enumerate(curves)
        ]

    noise = [replace(each, pale=True) for each in over_each_other(lambda c: c.loss)] if alone else []
    drawn = {
        "loss": (noise + over_each_other(lambda c: c.smooth_loss), "Training loss"),
        "rate": (over_each_other(lambda c: c.learning_rate), "Learning rate"),
        "norm": (over_each_other(lambda c: c.gradient_norm), "Gradient norm"),
        "evaluated": (over_each_other(lambda c: c.evaluated, evaluated=True), DECIDING),
    }
    return {name: lines(name, f"{what} by step. {_ends(some)}", some) for name, (some, what) in drawn.items()}


def _ends(some: Sequence[Line]) -> str:
    ends = [each.y[np.isfinite(each.y)] for each in some if not each.pale]
    return "; ".join(f"from {each[0]:.4g} to {each[-1]:.4g}" for each in ends if len(each))


def similarity(found: Similarity) -> dict[str, Markup]:
    """Histograms of the scores of the best relevant and the best other passages: before and after, on one scale."""
    tallest = max(max(side) for each in (found.before, found.after) for side in (each.positive, each.negative))

    def histogram(name: str, scores: Scores) -> Markup:
        def paint(figure: "Figure") -> None:
            axes = figure.add_axes((58 / WIDTH, 42 / LOW, 1 - 72 / WIDTH, 1 - 54 / LOW))
            for role, counts, mean in (
                ("other", scores.negative, scores.mean_negative),
                ("after", scores.positive, scores.mean_positive),
            ):
                axes.stairs(counts, found.edges, fill=True, color=COLOURS[role], alpha=0.4)
                axes.stairs(counts, found.edges, color=COLOURS[role], linewidth=1.2)
                axes.axvline(mean, color=COLOURS[role], linewidth=1.2, linestyle="--")
            axes.set_xlabel("similarity")
            axes.set_ylabel("queries")
            axes.margins(x=EDGE)
            axes.set_ylim(0, tallest * 1.06)
            axes.xaxis.set_major_locator(_few(6))
            axes.xaxis.set_major_formatter(_number)
            axes.yaxis.set_major_locator(_few(4, whole=True))

        label = (
            f"Histogram of similarities {name}: relevant passages have a mean of {scores.mean_positive:.3f}, the best "
            f"other passages {scores.mean_negative:.3f}."
        )
        return draw(f"similarity-{name}", label, (WIDTH, LOW), paint)

    return {"before": histogram("before", found.before), "after": histogram("after", found.after)}


def side_by_side(values: Sequence[tuple[Comparison, Means | None]]) -> Markup:
    """The deciding measure of several runs, before and after, with the interval of the latter where it is known."""

    def paint(figure: "Figure") -> None:
        axes = _rows(figure, [f"run {number}" for number in range(1, 1 + len(values))])
        for place, (each, known) in enumerate(values):
            colour = COLOURS[colour_of(place)]
            axes.plot([each.before], [place], "o", color=COLOURS["before"], markersize=7, markerfacecolor="none")
            if known is not None:
                axes.plot([known.after.low, known.after.high], [place, place], color=colour, linewidth=2.2)
            axes.plot([each.after], [place], "o", color=colour, markersize=7)
        axes.margins(x=0.08)

    said = "; ".join(f"run {n}: {each.before:.4f} to {each.after:.4f}" for n, (each, _) in enumerate(values, 1))
    return draw("runs", f"{DECIDING} of each run, before and after. {said}", (WIDTH, 46 + ROW * len(values)), paint)


def _few(ticks: int, *, whole: bool = False) -> "MaxNLocator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=ticks, integer=whole)


def _number(value: float, _: object = None) -> str:
    return f"{value:.6g}".replace("e-0", "e-")


def _count(value: float, _: object = None) -> str:
    if value >= 10_000 and not math.isclose(value, 0):
        return f"{value / 1000:g}k"
    return f"{value:g}"
