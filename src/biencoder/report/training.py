"""What a training run tells: on the terminal, in ``eval.json`` and in the model card."""

import json
from pathlib import Path
from typing import Any

from biencoder.config import TrainConfig
from biencoder.files import atomic_write
from biencoder.model.encoder import Encoder
from biencoder.retrieval.evaluate import (
    COMPARISON_COLUMNS,
    Comparison,
    Evaluation,
    compare,
    comparison_json,
    comparison_rows,
)
from biencoder.terminal import say, table

SIGNIFICANT = 0.05
DECIDING = "ndcg@10"


def report_result(output_dir: Path, before: Evaluation, after: Evaluation, best_step: int, steps: int) -> None:
    """Print the measures before and after, what they mean, and what to type next."""
    comparisons = compare(before, after)
    say(f"\nBefore and after, on {after.description}")
    table(comparison_rows(comparisons), COMPARISON_COLUMNS)
    say(verdict(comparisons))
    if best_step != steps:
        say(f"The model kept is the best one evaluated: that of step {best_step} of {steps}.")
    say(f"\nThe model is in {output_dir}. Try it:\n")
    say(f'  biencoder search --model {output_dir} --corpus YOUR_PASSAGES.jsonl --query "YOUR QUESTION"')


def verdict(comparisons: list[Comparison]) -> str:
    """One sentence: better, worse, or not to be told apart."""
    deciding = next(each for each in comparisons if each.measure == DECIDING)
    if deciding.p >= SIGNIFICANT:
        return f"No significant change in {DECIDING} (p = {deciding.p:.3f}): this cannot tell the two models apart."
    direction = "better" if deciding.difference > 0 else "WORSE"
    return f"The tuned model is {direction}: {deciding.difference:+.4f} {DECIDING} (p = {deciding.p:.4f})."


def write_evaluation(path: Path, before: Evaluation, after: Evaluation, best_step: int) -> None:
    """Write ``eval.json``: before, after, and the comparison."""
    content = {
        "before": before.to_json(),
        "after": after.to_json(),
        "after_step": best_step,
        "comparison": comparison_json(compare(before, after)),
    }
    with atomic_write(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_model_card(
    path: Path, config: TrainConfig, encoder: Encoder, before: Evaluation, after: Evaluation, rows: int
) -> None:
    """Write ``README.md``: what the model is, from what it was made, what it is worth, how to use it."""
    settings = encoder.settings
    prompts = {"query": settings.query_prompt, "passage": settings.passage_prompt}
    named = "; ".join(f"{side}: `{_inline(text)}`" for side, text in prompts.items() if text) or "none"
    figures = "\n".join(f"| {' | '.join(row)} |" for row in comparison_rows(compare(before, after)))
    with atomic_write(path) as file:
        file.write(
            f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, sentence-similarity, feature-extraction, biencoder]
---

# {path.parent.resolve().name}

`{_inline(config.model)}`, fine-tuned with [biencoder](https://pypi.org/project/biencoder/) on {rows:,} rows.
It maps texts to {encoder.dim} dimensions; {settings.pooling} pooling, {"" if settings.normalize else "not "}normalised,
at most {encoder.max_length} tokens; prompts: {named}.

## What it is worth

On {_inline(after.description)}:

| {" | ".join(COMPARISON_COLUMNS)} |
|{" --- |" * len(COMPARISON_COLUMNS)}
{figures}

The p-values are of a paired randomisation test over queries, the intervals of a bootstrap.

## Use

```python
from biencoder import Encoder

encoder = Encoder.load("{path.parent.resolve().name}")
scores = encoder.encode_queries(["a question"]) @ encoder.encode_passages(["a passage", "another one"]).T
```

With sentence-transformers: `SentenceTransformer(folder)`, then `encode_query` and `encode_document`.

## Settings

```yaml
{config.to_yaml().rstrip()}
```
"""
        )


def _inline(text: Any) -> str:
    """Text of others inside a line of Markdown."""
    return " ".join(str(text).replace("`", "'").replace("|", "/").replace("<", "&lt;").split())
