"""Whether two models give the same vectors."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

PROBES = ("", "a word", "A longer sentence, with some punctuation: does it come out the same?", "naïve café 東京 " * 40)


class Parity(NamedTuple):
    """How near the vectors of two models are.

    Attributes:
        difference: the largest between two components.
        cosine: the lowest between two vectors of one text.
    """

    difference: float
    cosine: float


class EncodesBothSides(Protocol):
    """A model with prompts for queries and passages."""

    def encode_queries(self, texts: Sequence[str], /) -> np.ndarray:
        """Vectors of queries."""

    def encode_passages(self, texts: Sequence[str], /) -> np.ndarray:
        """Vectors of passages."""


def parity(one: EncodesBothSides, other: EncodesBothSides) -> Parity:
    """Compare two models over a few texts of all lengths, as queries and as passages."""
    sides = ((one.encode_queries, other.encode_queries), (one.encode_passages, other.encode_passages))
    pairs = [(first(PROBES), second(PROBES)) for first, second in sides]
    return Parity(float(max(np.abs(a - b).max() for a, b in pairs)), min(lowest_cosine(a, b) for a, b in pairs))


def lowest_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The lowest between two vectors of one text, both ``[N, D]``."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / norms.clip(min=1e-30)).min())
