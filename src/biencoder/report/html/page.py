"""``report.html``: one file that needs nothing else, made from the files in the folders of finished runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from biencoder import terminal
from biencoder.files import atomic_write
from biencoder.report.guard import GUARD_COLUMNS, guard_rows, guard_verdicts
from biencoder.report.html import charts
from biencoder.report.html.settings import differing, of_run
from biencoder.report.html.words import (
    RUN_FIGURES,
    alike,
    cost,
    facts,
    notes,
    run_figures,
    shares_tried,
    tone,
    usage,
)
from biencoder.report.run_files import RunFiles, read_run
from biencoder.retrieval.comparing.comparison import (
    COMPARISON_COLUMNS,
    HOW_COMPARED,
    comparison_rows,
    deciding_of,
    verdict,
)
from biencoder.retrieval.evaluate import DECIDING

LONGEST = 400  # characters of a text of other people; nothing here needs more
TEMPLATES = Path(__file__).with_name("templates")


def write_page(folders: Sequence[Path], path: Path) -> None:
    """Write the report of a run, or of several side by side.

    Args:
        folders: of finished runs.
        path: of the HTML file; it appears whole or not at all.

    Raises:
        UserError: a folder is not that of a finished run, or a file in it is damaged.
    """
    runs = [read_run(folder) for folder in folders]
    html = _of_one(runs[0]) if len(runs) == 1 else _of_several(runs)
    with atomic_write(path) as file:
        file.write(html)


def foreign(text: object) -> Markup:
    """A text of other people, which stays what it is: text, in its own place, in its own direction."""
    return Markup("<bdi>{}</bdi>").format(terminal.shorten(terminal.escape(str(text)), LONGEST))


def _of_one(run: RunFiles) -> str:
    comparisons, record, look = run.figures.comparison, run.record, run.figures.cross_validation
    means = {} if record is None else record.means
    return _render(
        "run.html",
        title=run.name,
        run=run,
        record=record,
        deciding=deciding_of(comparisons),
        verdict=look.sentence() if look else verdict(comparisons, "The tuned model"),
        tone=tone(look.deciding if look else deciding_of(comparisons)),
        look=look,
        look_rows=comparison_rows(look.comparison) if look else [],
        notes=notes(run),
        facts=facts(run),
        columns=COMPARISON_COLUMNS,
        rows=comparison_rows(comparisons),
        how_compared=HOW_COMPARED,
        bars=charts.before_and_after(comparisons, means),
        differences=charts.differences(comparisons),
        guard_columns=GUARD_COLUMNS,
        guard_rows=guard_rows(run.guards),
        guard_verdicts=guard_verdicts(run.guards),
        shares_tried=shares_tried(run),
        guard_tones=[tone(deciding_of(each)) for each in run.guards.values()],
        curves=charts.curves_of([run.curves]),
        similarity=record and record.similarity and charts.similarity(record.similarity),
        cost=cost(run),
        settings=of_run(run.settings),
        usage=usage(run),
    )


def _of_several(runs: Sequence[RunFiles]) -> str:
    deciding = [deciding_of(run.figures.comparison) for run in runs]
    means = [run.record.means.get(DECIDING) if run.record else None for run in runs]
    return _render(
        "runs.html",
        title=f"{len(runs)} runs side by side",
        runs=runs,
        colours=[charts.colour_of(number) for number in range(len(runs))],
        alike=alike(runs),
        headings=[f"run {number}" for number in range(1, 1 + len(runs))],
        columns=RUN_FIGURES,
        rows=[run_figures(number, run) for number, run in enumerate(runs, 1)],
        how_compared=HOW_COMPARED,
        measures=_measures(runs),
        chart=charts.side_by_side(list(zip(deciding, means, strict=True))),
        curves=charts.curves_of([run.curves for run in runs]),
        settings=differing([run.settings for run in runs]),
    )


def _measures(runs: Sequence[RunFiles]) -> list[list[str]]:
    """A row for each measure that some run has: its name, and its value after training in each run."""
    names = dict.fromkeys(name for run in runs for name in run.figures.after.metrics)
    found = [[run.figures.after.metrics.get(name) for run in runs] for name in names]
    return [
        [name, *("" if value is None else f"{value:.4f}" for value in values)]
        for name, values in zip(names, found, strict=True)
    ]


def _render(template: str, **content: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"foreign": foreign, "control_free": terminal.escape}
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, measure=DECIDING, **content)
