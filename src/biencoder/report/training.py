"""What a training run reports on the terminal, in ``eval.json`` and in the model card."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from biencoder.config import TrainConfig
from biencoder.config.choices import DENSE, MULTI, SPARSE
from biencoder.config.options import shared_name
from biencoder.files import atomic_write
from biencoder.model.encoder import Encoder
from biencoder.report.guard import GUARD_COLUMNS, guard_json, guard_rows, guard_verdicts, next_step
from biencoder.report.kept_base import Kept
from biencoder.report.markdown import code, fenced, inline
from biencoder.report.wording import best_step_said, python_usage, search_command, skipped_said
from biencoder.retrieval.comparing.comparison import (
    COMPARISON_COLUMNS,
    HOW_COMPARED,
    SIGNIFICANCE,
    Comparison,
    compare,
    comparison_json,
    comparison_rows,
    verdict,
)
from biencoder.retrieval.comparing.second_look import SecondLook
from biencoder.retrieval.evaluate import Evaluation
from biencoder.terminal import say, table


@dataclass(frozen=True)
class Outcome:
    """The result of a run, in figures.

    Attributes:
        config: the resolved configuration of the run.
        before: evaluation of the model before training.
        kept: the share of the base in the saved model, with its evaluation.
        best_step: the step of the best trained weights.
        steps: steps of the run.
        rows: rows that the run trained on.
        skipped: steps that were skipped because the loss or the gradient was not finite.
        overflows: steps that were skipped because the scaled gradient was too large for float16.
        guards_before: evaluation of the model before training on each folder of guard data.
        guards_after: evaluation of the saved model on the same folders.
        second_look: by cross-validation; None if the evaluation could tell.
        continued: what the run took over from the one that it continues, in a sentence; empty if it continues none.
    """

    config: TrainConfig
    before: Evaluation
    kept: Kept
    best_step: int
    steps: int
    rows: int
    skipped: int = 0
    overflows: int = 0
    guards_before: dict[str, Evaluation] = field(default_factory=dict)
    guards_after: dict[str, Evaluation] = field(default_factory=dict)
    second_look: SecondLook | None = None
    continued: str = ""

    @property
    def after(self) -> Evaluation:
        """Evaluation of the saved model."""
        return self.kept.evaluation

    @property
    def skipped_said(self) -> list[str]:
        """How many steps changed nothing, and why, in sentences."""
        return skipped_said(self.skipped, self.overflows, self.steps)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every measure before and after."""
        return compare(self.before, self.after)

    @cached_property
    def guards(self) -> dict[str, list[Comparison]]:
        """The same on each folder of guard data."""
        return {folder: compare(before, self.guards_after[folder]) for folder, before in self.guards_before.items()}


def report_result(outcome: Outcome) -> None:
    """Print the measures before and after, what they mean, and what to type next."""
    output_dir = outcome.config.output_dir
    say(f"\nBefore and after, on {outcome.after.description}")
    table(comparison_rows(outcome.comparisons), COMPARISON_COLUMNS)
    say(HOW_COMPARED)
    say(verdict(outcome.comparisons, "The tuned model"))
    if outcome.second_look is not None:
        say(f"\nBy cross-validation, on {outcome.second_look.description}")
        table(comparison_rows(outcome.second_look.comparison), COMPARISON_COLUMNS)
        say(outcome.second_look.sentence())
    best_step = best_step_said(outcome.best_step, outcome.steps)
    for sentence in [*best_step, *outcome.skipped_said, *outcome.kept.sentences()]:
        say(sentence)
    if outcome.guards:
        say("\nOn data that the model did not train on")
        table(guard_rows(outcome.guards), GUARD_COLUMNS)
        more = next_step(outcome.guards, outcome.config, outcome.kept.share)
        for sentence in [*guard_verdicts(outcome.guards), *([more] if more else [])]:
            say(sentence)
    say(f"\nThe model is in {output_dir}. Try it:\n")
    say(f"  {search_command(output_dir)}")


def write_evaluation(path: Path, outcome: Outcome) -> None:
    """Write ``eval.json``: before, after, the comparison, and the same on guard data."""
    content: dict[str, Any] = {
        "before": outcome.before.to_json(),
        "after": outcome.after.to_json(),
        "after_step": outcome.best_step,
        "skipped_steps": outcome.skipped,
        "overflowed_steps": outcome.overflows,
        "comparison": comparison_json(outcome.comparisons),
        "significance": SIGNIFICANCE,
    }
    content |= outcome.kept.to_json()
    if outcome.second_look is not None:
        content["cross_validation"] = outcome.second_look.to_json()
    if outcome.guards:
        content["guards"] = guard_json(outcome.guards, outcome.guards_before, outcome.guards_after)
    with atomic_write(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_model_card(path: Path, encoder: Encoder, outcome: Outcome) -> None:
    """Write ``README.md``: what the model is, what it was made from, how good it is, and how to use it.

    It goes wherever the model goes, so it names folders of this machine by their last part only.
    """
    settings, config = encoder.settings, outcome.config
    prompts = {"query": settings.query_prompt, "passage": settings.passage_prompt}
    named = "; ".join(f"{side}: {code(text)}" for side, text in prompts.items() if text) or "none"
    continued = [inline(outcome.continued)] if outcome.continued else []
    sentences = [*continued, *outcome.kept.sentences(), *outcome.skipped_said]
    notes = "".join(f"\n{sentence}\n" for sentence in sentences)
    peer = _class_of_sentence_transformers(encoder)
    part = f", which loads the head {DENSE} alone" if settings.combined else ""
    with_peer = f"With sentence-transformers: `{peer}(folder)`{part}, then `encode_query` and `encode_document`.\n"
    with_peer += "With PyLate: `models.ColBERT(folder)`.\n" * settings.multi
    tags = [*(["sentence-transformers"] if peer else []), "biencoder", "sentence-similarity", "feature-extraction"]
    card = f"""---
library_name: {tags[0]}
pipeline_tag: sentence-similarity
tags: [{", ".join(tags)}]
---

# {inline(path.parent.resolve().name)}

{code(_base(config))}, fine-tuned with [biencoder](https://pypi.org/project/biencoder/) on {outcome.rows:,} rows.
{_what_it_makes(encoder)},
at most {encoder.max_length} tokens; prompts: {named}.
{notes}
## What it is worth

On {inline(outcome.after.description)}:

{_markdown(comparison_rows(outcome.comparisons), COMPARISON_COLUMNS)}

{HOW_COMPARED}
{_second_look_in_card(outcome)}{_guards_in_card(outcome)}
## Use

{fenced(python_usage(path.parent.resolve().name, by_token=encoder.kind != DENSE), "python")}

{with_peer if peer else ""}
## Settings

{fenced(config.to_shared_yaml().rstrip(), "yaml")}
"""
    for folder in (*(config.guard_data or ()), *([config.continue_from] if config.continue_from else [])):
        card = card.replace(inline(folder), inline(shared_name(folder)))
    with atomic_write(path) as file:
        file.write(card)


def _base(config: TrainConfig) -> str:
    return shared_name(config.model) if Path(config.model).exists() else config.model


def _class_of_sentence_transformers(encoder: Encoder) -> str | None:
    """What loads the model; None if nothing does."""
    if encoder.kind == SPARSE:
        return "SparseEncoder" if encoder.settings.expands else None
    return "MultiVectorEncoder" if encoder.kind == MULTI else "SentenceTransformer"


def _what_it_makes(encoder: Encoder) -> str:
    settings = encoder.settings
    if encoder.kind == SPARSE:
        return "It makes a weight for each word, and compares texts by the words that they share"
    if encoder.kind == MULTI:
        return f"It makes a vector of {encoder.dim} dimensions for each token, compared by the best matches (MaxSim)"
    if settings.combined:
        weighted = zip(settings.parts, settings.weights, strict=True)
        summed = " + ".join(f"{weight:g} {kind}" for kind, weight in weighted)
        return f"It has several heads, as BGE-M3. The similarity of two texts is {summed}"
    scaled = "normalised" if settings.normalize else "not normalised"
    return f"It maps texts to {encoder.dim} dimensions; {settings.pooling} pooling, {scaled}"


def _second_look_in_card(outcome: Outcome) -> str:
    look = outcome.second_look
    if look is None:
        return ""
    figures = _markdown(comparison_rows(look.comparison), COMPARISON_COLUMNS)
    return f"\nBy cross-validation, on {look.description}:\n\n{figures}\n\n{look.sentence()}\n"


def _guards_in_card(outcome: Outcome) -> str:
    if not outcome.guards:
        return ""
    sentences = "\n".join(f"- {inline(sentence)}" for sentence in guard_verdicts(outcome.guards))
    figures = _markdown(guard_rows(outcome.guards), GUARD_COLUMNS)
    return f"\nOn data that the model did not train on:\n\n{figures}\n\n{sentences}\n"


def _markdown(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
    lines = [list(columns), ["---"] * len(columns), *([inline(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
