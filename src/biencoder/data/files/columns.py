"""Which columns of a training file hold what."""

import functools
import re
from typing import NamedTuple

from biencoder.data.files.lines import listed

QUERY_COLUMNS = ("query", "anchor", "question", "sentence1")
POSITIVE_COLUMNS = ("pos", "positive", "answer", "sentence2")
SCORE_COLUMNS = ("pos_scores", "neg_scores", "score")
KNOWN = (
    "query/anchor/question, pos/positive/answer, neg/negative/negative_1…, pos_scores, neg_scores, prompt; or "
    "sentence1, sentence2, score; or text alone"
)

_NUMBERED_NEGATIVE = re.compile(r"negative_([0-9]{1,9})")


class RowError(ValueError):
    """What is wrong with one row. ``kind`` groups rows for counting; the message is for people."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Columns(NamedTuple):
    """The names of the columns that hold the parts of an example."""

    query: str
    positive: str
    negatives: tuple[str, ...]
    positive_scores: str | None
    negative_scores: str | None
    prompt: str | None
    similarity: str | None


@functools.lru_cache(maxsize=256)
def find_columns(names: tuple[str, ...]) -> Columns:
    """Recognise FlagEmbedding's and sentence-transformers' column names; the first known name wins.

    Raises:
        RowError: no column holds the query, or no column holds the positive. The message lists the columns found and
            the known names.
    """
    query = next((name for name in QUERY_COLUMNS if name in names), None)
    positive = next((name for name in POSITIVE_COLUMNS if name in names), None)
    if query is None and positive is None and "text" in names and "label" not in names:
        query = positive = "text"
    if query is None or positive is None:
        lacking = " and no ".join(part for part, name in (("query", query), ("positive", positive)) if name is None)
        raise RowError("missing column", f"no {lacking} column; found: {listed(names)}; known names: {KNOWN}")
    is_pair = (query, positive) == ("sentence1", "sentence2")
    if is_pair and "label" in names and "score" not in names:
        raise RowError(
            "missing column",
            "sentence1 and sentence2 come with a label, whose meaning biencoder does not know. If it says how similar "
            "they are, from -1 to 1, name the column score. If every pair belongs together, remove it",
        )
    return Columns(
        query,
        positive,
        _negative_columns(names),
        "pos_scores" if "pos_scores" in names else None,
        "neg_scores" if "neg_scores" in names else None,
        "prompt" if "prompt" in names else None,
        "score" if is_pair and "score" in names else None,
    )


def _negative_columns(names: tuple[str, ...]) -> tuple[str, ...]:
    if "neg" in names:
        return ("neg",)
    numbered = sorted((int(match[1]), name) for name in names if (match := _NUMBERED_NEGATIVE.fullmatch(name)))
    return tuple(name for name in ("negative",) if name in names) + tuple(name for _, name in numbered)
