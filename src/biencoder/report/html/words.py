"""The sentences and figures of a report."""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from biencoder.config.choices import DENSE, MULTI, SPARSE
from biencoder.report.run_files import RunFiles
from biencoder.report.wording import best_step_said, python_usage, search_command, skipped_said
from biencoder.retrieval.comparing.comparison import SIGNIFICANT, Comparison, deciding_of
from biencoder.terminal import duration

RUN_FIGURES = (
    "run",
    "before",
    "after",
    "difference",
    "95% interval",
    "p",
    "rows",
    "steps",
    "time",
    "queries/s",
    "memory",
)


class Fact(NamedTuple):
    """A figure with its name, and what to know about it."""

    name: str
    value: str
    note: str = ""


class Usage(NamedTuple):
    """How to use the model: on the command line, and in Python."""

    shell: str
    python: str


def tone(deciding: Comparison) -> str:
    """The class of an element that says whether a model got better: ``good``, ``bad`` or ``unsure``."""
    if deciding.p >= SIGNIFICANT:
        return "unsure"
    return "good" if deciding.difference > 0 else "bad"


def notes(run: RunFiles) -> list[str]:
    """What to know about the saved model, in sentences."""
    figures, steps = run.figures, run.curves.last_step
    kept = [] if run.record is None else run.record.kept
    skipped = skipped_said(figures.skipped_steps, figures.overflowed_steps, steps)
    return [*best_step_said(figures.after_step, steps), *kept, *skipped]


def shares_tried(run: RunFiles) -> list[list[str]]:
    """A row for each share of the base that was tried: the share, and the measure on the guard and on the data."""
    return [
        [f"{row.get('share', 0):g}", *(f"{row[name]:.4f}" if name in row else "" for name in ("guard", "evaluation"))]
        for row in run.figures.keep_base_tried
    ]


def facts(run: RunFiles) -> list[Fact]:
    """What the model is and what it was made from, in figures."""
    found: list[Fact] = []
    if (record := run.record) is not None:
        found += [
            Fact("trained on", f"{record.rows:,} rows"),
            Fact("weights", _millions(record.parameters)),
            _what_it_makes(run, record.dim),
        ]
    found.append(Fact("steps", f"{run.curves.last_step:,}"))
    return found if record is None else [*found, Fact("biencoder", record.biencoder)]


def cost(run: RunFiles) -> list[Fact]:
    """Time, memory and throughput, over all parts of a run that was interrupted."""
    curves, record = run.curves, run.record
    seconds = curves.training_seconds
    found = [Fact("training", duration(seconds), f"{curves.last_step:,} steps")]
    if curves.evaluation_seconds is not None:
        found.append(Fact("evaluations", duration(curves.evaluation_seconds), f"{len(curves.evaluated):,} of them"))
    if seconds > 0:
        tokens = f"{curves.tokens / seconds:,.0f} tokens/s, without padding"
        found.append(Fact("throughput", f"{curves.queries / seconds:,.1f} queries/s", tokens))
    if curves.peak_bytes is not None:
        on_gpu = record is not None and record.device == "cuda"
        note = "of GPU memory, at most" if on_gpu else "of the whole process, at most"
        found.append(Fact("peak memory", size(curves.peak_bytes), note))
    if record is not None and record.processes > 1:
        found.append(Fact("processes", f"{record.processes:,}", "memory is that of the first"))
    return found


def run_figures(number: int, run: RunFiles) -> list[str]:
    """The row of a run under :data:`RUN_FIGURES`."""
    deciding, curves = deciding_of(run.figures.comparison), run.curves
    seconds = curves.training_seconds
    return [
        f"run {number}",
        f"{deciding.before:.4f}",
        f"{deciding.after:.4f}",
        f"{deciding.difference:+.4f}",
        f"{deciding.low:+.4f} to {deciding.high:+.4f}",
        f"{deciding.p:.4f}",
        f"{run.record.rows:,}" if run.record else "",
        f"{curves.last_step:,}",
        duration(seconds),
        f"{curves.queries / seconds:,.1f}" if seconds > 0 else "",
        size(curves.peak_bytes) if curves.peak_bytes is not None else "",
    ]


def alike(runs: Sequence[RunFiles]) -> bool:
    """Whether the runs were evaluated on data of one description, so that their figures compare."""
    return len({run.figures.after.description for run in runs}) == 1


def size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _what_it_makes(run: RunFiles, dim: int) -> Fact:
    head = run.settings.get("heads", DENSE)
    if head == SPARSE:
        return Fact("weights of words", "one for each", "sparse")
    if "," in head:
        return Fact("heads", " + ".join(head.split(",")), "their scores are summed")
    return Fact("vectors", f"{dim:,} dimensions", "one for each token" if head == MULTI else "")


def usage(run: RunFiles) -> Usage:
    """How to use the model of a run."""
    name = run.name
    suffix = ".npz" if run.settings.get("heads") == SPARSE else ".npy"
    encode = f"biencoder encode --model {shlex.quote(name)} --input YOUR_PASSAGES.jsonl --output vectors{suffix}"
    by_token = run.settings.get("heads", DENSE) != DENSE
    return Usage(f"{search_command(name)}\n{encode}", python_usage(name, by_token=by_token))


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} million" if count >= 1e5 else f"{count:,}"
