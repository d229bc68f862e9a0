"""``biencoder evaluate``: measures how well a model finds the relevant documents of a collection."""

import json
from pathlib import Path
from typing import Any

from biencoder.config import EvaluateConfig
from biencoder.data.files.beir import Collection, load_collection
from biencoder.distributed import shares_work
from biencoder.errors import UserError
from biencoder.files import atomic_write
from biencoder.model.encoder import Encoder, load_with
from biencoder.model.parallel.sharing import is_first
from biencoder.retrieval.comparing.comparison import (
    COMPARISON_COLUMNS,
    HOW_COMPARED,
    SIGNIFICANCE,
    compare,
    comparison_json,
    comparison_rows,
    deciding_of,
    verdict,
)
from biencoder.retrieval.evaluate import DECIDING, WHOLE, Evaluation, retrieve, score, texts_to_encode
from biencoder.retrieval.trec import write_trec_run
from biencoder.terminal import ProgressLine, say, table


@shares_work
def run(config: EvaluateConfig) -> None:
    """The command: print the measures, and write the JSON file and the TREC run if you asked for them."""
    for flag, path in (("--output", config.output), ("--run-file", config.run_file)):
        if path is not None and path.is_dir():
            raise UserError(f"{flag} {path}: is a folder; name a file")
    collection = load_collection(config.data, config.split)
    baseline = None
    if config.baseline is not None:
        baseline = score(_found_by(config, config.baseline, collection, "--baseline")[WHOLE], collection)
    rankings = _found_by(config, config.model, collection)
    found = rankings.pop(WHOLE)
    evaluation = score(found, collection)
    content = {"model": str(config.model), **evaluation.to_json()}
    say(f"{config.model} on {evaluation.description}")
    if baseline is None:
        table([[name, f"{value:.4f}"] for name, value in evaluation.metrics.items()], ["measure", "value"])
    else:
        comparisons = compare(baseline, evaluation)
        table(comparison_rows(comparisons), ["measure", "baseline", "model", *COMPARISON_COLUMNS[3:]])
        say(f"baseline: {config.baseline}. {HOW_COMPARED}")
        say(verdict(comparisons, str(config.model)))
        content["baseline"] = {"model": str(config.baseline), **baseline.to_json()}
        content["comparison"] = comparison_json(comparisons)
        content["significance"] = SIGNIFICANCE
    if rankings:
        content["heads"] = _compare_heads(
            evaluation, {name: score(each, collection) for name, each in rankings.items()}
        )
    if config.output is not None and is_first():
        with atomic_write(config.output) as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")
        say(f"{config.output}: the figures")
    if config.run_file is not None and is_first():
        write_trec_run(config.run_file, found, tag=Path(config.model).name)
        say(f"{config.run_file}: the TREC run")


def _compare_heads(everything: Evaluation, heads: dict[str, Evaluation]) -> dict[str, dict[str, Any]]:
    """Print how each of several heads ranks, and some of them together, against all; give the same as JSON."""
    found = {name: deciding_of(compare(everything, each)) for name, each in heads.items()}
    rows = [[name, *comparison_rows([each])[0][2:]] for name, each in found.items()]
    say(f"\n{DECIDING} of each head, and of some together, against {everything.metrics[DECIDING]:.4f} of all together:")
    table(rows, ["heads", DECIDING, *COMPARISON_COLUMNS[3:]])
    return {name: comparison_json([each])[0] for name, each in found.items()}


def _found_by(
    config: EvaluateConfig, model: str, collection: Collection, flag: str = "--model"
) -> dict[str, dict[str, dict[str, float]]]:
    return found_by(load_with(config, model, flag), collection, config.top_k)


def found_by(encoder: Encoder, collection: Collection, top_k: int) -> dict[str, dict[str, dict[str, float]]]:
    """What :func:`~biencoder.retrieval.evaluate.retrieve` finds; a line shows how far the encoding is."""
    with ProgressLine(texts_to_encode(collection), "encode") as line:
        return retrieve(encoder, collection, k=top_k, progress=line.update)
