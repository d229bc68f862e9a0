"""Whether two models give the same vectors."""

import numpy as np

from biencoder.model.encoder import Encoder

PROBES = ("", "a word", "A longer sentence, with some punctuation: does it come out the same?", "naïve café 東京 " * 40)


def parity(one: Encoder, other: Encoder) -> float:
    """The largest difference between the two models' components over a few texts of all lengths."""
    pairs = ((one.encode_queries, other.encode_queries), (one.encode_passages, other.encode_passages))
    return float(max(np.abs(first(PROBES) - second(PROBES)).max() for first, second in pairs))
