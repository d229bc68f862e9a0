"""Passages that share words with queries: Okapi BM25, for choosing which passages an evaluation searches.

Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", with the usual k1 and b. Only the
words of the queries are counted, so that a large corpus takes little memory.

Shapes: Q queries, N passages, P postings (a word in a passage).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

K1 = 1.2  # how soon a word that comes again and again stops to count
B = 0.75  # how much a long passage is marked down
EVERYWHERE = 0.25  # a word in more than this share of the passages tells nothing apart
_WORD = re.compile(r"\w+")
_WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")  # Thai, Lao, Japanese, Chinese


def words(text: str) -> Iterator[str]:
    """The words of a text in lower case; pairs of neighbouring characters where a script does not part its words."""
    for word in _WORD.findall(text.lower()):
        if len(word) > 1 and _WITHOUT_SPACES.search(word):
            yield from (word[i : i + 2] for i in range(len(word) - 1))
        else:
            yield word


def lexical_ranking(queries: Sequence[str], passages: Iterable[str], k: int) -> list[NDArray[np.int64]]:
    """For each query, the numbers of the ``k`` passages with the highest BM25 score, best first.

    Passages without a word of the query do not appear. Equal scores are in the order of the passages.
    """
    asked = [set(words(query)) for query in queries]
    index = _Index(sorted(set().union(*asked)), passages)
    return [index.best(query, k) for query in asked]


class _Index:
    """What BM25 has to know of the passages, for some words."""

    def __init__(self, vocabulary: Sequence[str], passages: Iterable[str]) -> None:
        self._number = {word: number for number, word in enumerate(vocabulary)}
        lengths, passage_P, word_P, count_P = [], [], [], []
        for passage, text in enumerate(passages):
            counted = Counter(words(text))
            lengths.append(counted.total())
            for word in counted.keys() & self._number.keys():
                passage_P.append(passage)
                word_P.append(self._number[word])
                count_P.append(counted[word])
        order = np.lexsort((passage_P, word_P))
        self._passage_P = np.array(passage_P, dtype=np.int64)[order]
        self._starts = np.searchsorted(np.array(word_P, dtype=np.int64)[order], np.arange(len(vocabulary) + 1))
        self._passages = len(lengths)
        length_N = np.array(lengths, dtype=np.float64)
        relative_P = (length_N / max(1.0, length_N.mean() if lengths else 1.0))[self._passage_P]
        count = np.array(count_P, dtype=np.float64)[order]
        self._weight_P = count * (K1 + 1) / (count + K1 * (1 - B + B * relative_P))

    def best(self, asked: Iterable[str], k: int) -> NDArray[np.int64]:
        """The passages with the highest scores for the words of a query."""
        score_N = np.zeros(self._passages)
        for number in (self._number[word] for word in sorted(asked)):
            postings = slice(self._starts[number], self._starts[number + 1])
            found = int(postings.stop - postings.start)
            if found <= EVERYWHERE * self._passages or self._passages < 1 / EVERYWHERE:
                rarity = np.log1p((self._passages - found + 0.5) / (found + 0.5))
                score_N[self._passage_P[postings]] += rarity * self._weight_P[postings]
        order = np.argsort(-score_N, kind="stable")[:k]
        return order[score_N[order] > 0]
