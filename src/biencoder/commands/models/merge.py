"""``biencoder merge``: averages models, and says how to measure the result."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from biencoder.config import MergeConfig
from biencoder.files import atomic_write, refuse_filled
from biencoder.model.merging.merge import merge, normalized
from biencoder.report.markdown import fenced, inline
from biencoder.terminal import say


def run(config: MergeConfig) -> None:
    """The command: compare the models, average their weights, write the folder.

    Raises:
        UserError: the output folder holds something already, a model does not load, or the models are not alike.
    """
    folder = config.output_dir
    refuse_filled(folder)
    shares = normalized(config.weights or (1.0,) * len(config.models))
    merge(
        config.models,
        shares,
        folder,
        spherical=config.spherical,
        trust_remote_code=config.trust_remote_code,
    )
    _write_card(folder, config, shares)
    if config.weights is not None and config.weights != shares:
        say(f"weights {_listed(config.weights)} do not sum to 1, so they are scaled: {_listed(shares)}")
    say(f"{folder}: {' + '.join(f'{share:.4g} {path}' for share, path in zip(shares, config.models, strict=True))}")
    merged, first = shlex.quote(str(folder)), shlex.quote(config.models[0])
    say(f"Measure it: biencoder evaluate --model {merged} --data BEIR_DIR --baseline {first}")


def _listed(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:.4g}" for weight in weights)


def _write_card(folder: Path, config: MergeConfig, shares: Sequence[float]) -> None:
    """Write ``README.md``: what the model was made from, and how."""
    parents = "\n".join(
        f"{share:<8.6g}{path}".replace("\n", " ") for share, path in zip(shares, config.models, strict=True)
    )
    way = "spherical interpolation, tensor by tensor," if config.spherical else "a weighted mean"
    with atomic_write(folder / "README.md") as file:
        file.write(
            f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, sentence-similarity, feature-extraction, biencoder, merge]
---

# {inline(folder.resolve().name)}

Weights merged with [biencoder](https://pypi.org/project/biencoder/): {way} of these models, in these shares:

{fenced(parents)}

Use it like any of them: `Encoder.load(folder)` of biencoder, or `SentenceTransformer(folder)`.
"""
        )
