"""Write the training file from the candidates that are left, and count what happened to the others."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import orjson
from numpy.typing import NDArray

from biencoder.config import PairsConfig
from biencoder.errors import UserError
from biencoder.files import atomic_write
from biencoder.pairs.candidates import CandidatePairs, Selection
from biencoder.pairs.methods import Pair

GENERATED = "question"  # the method of a pair whose query a language model wrote
SHOWN_EXAMPLES = 3
SHOWN_COMMON = 5


@dataclass
class Written:
    """What happened to the candidates.

    Attributes:
        counts: (method, fate) -> pairs; fates are ``found``, ``repeated``, ``common``, ``lost`` and ``written``.
        examples: a few of the written pairs.
        common: some of the queries that too many documents share.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Pair] = field(default_factory=list)
    common: list[str] = field(default_factory=list)


def write_pairs(
    config: PairsConfig, candidates: CandidatePairs, selection: Selection, found: NDArray[np.bool_] | None
) -> Written:
    """Write the pairs that are left, whole or not at all, and count the others."""
    chosen = selection.chosen if found is None else selection.chosen & found
    if not chosen.any():
        where = "--round-trip-k or --max-same-query" if found is not None else "--max-same-query"
        raise UserError(
            f"none of {len(chosen):,} pairs is left: {int(selection.repeated.sum()):,} repeat another, "
            f"{int(selection.common.sum()):,} have a query that too many documents share"
            + ("" if found is None else f", {int((~found).sum()):,} questions did not find their own passage")
            + f"; raise {where}"
        )
    places = np.flatnonzero(chosen)
    shown = set(places[np.arange(SHOWN_EXAMPLES) * len(places) // SHOWN_EXAMPLES].tolist())
    written = Written()
    with atomic_write(config.output, "wb") as file:
        for number, pair in enumerate(candidates):
            fate = _fate(number, selection, found)
            written.counts[pair.method, "found"] += 1
            written.counts[pair.method, fate] += 1
            if fate == "common" and len(written.common) < SHOWN_COMMON and pair.query not in written.common:
                written.common.append(pair.query)
            if fate == "written":
                row = {"query": pair.query, "pos": [pair.passage], "neg": [], "method": pair.method}
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            if number in shown:
                written.examples.append(pair)
    return written


def _fate(number: int, selection: Selection, found: NDArray[np.bool_] | None) -> str:
    if selection.repeated[number]:
        return "repeated"
    if selection.common[number]:
        return "common"
    return "written" if found is None or found[number] else "lost"
