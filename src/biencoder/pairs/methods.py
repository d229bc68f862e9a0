"""Training pairs from one document, without a language model."""

import string
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biencoder.config.choices import FIRST_SENTENCE, HEADINGS, SPANS, TITLE
from biencoder.data.random_bits import splitmix64
from biencoder.data.text import fold
from biencoder.pairs.documents import Document
from biencoder.pairs.sentences import Sentence, count_words, cut, plain, sections, sentences

SENTENCE_LEAST = 4  # words; shorter sentences are not used as queries
QUERY_MOST = 64  # words
PASSAGE_LEAST = 10  # words
SIGNS_MOST = 0.25  # share of a query's characters that may be ASCII punctuation; tables, formulas and code have more
KEPT_IN_PASSAGE = 0.1  # share of the spans that stay in their passage, as in Lee et al. 2019

_SPANS = 1  # stream of random numbers
_NO_SIGNS = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a passage that belongs to it.

    Attributes:
        query: one line, not empty.
        passage: at least `PASSAGE_LEAST` words, and different from the query.
        method: the method that found them.
    """

    query: str
    passage: str
    method: str


def pairs_of(document: Document, methods: Collection[str], *, seed: int, passage_words: int) -> Iterator[Pair]:
    """The pairs that a document yields. They depend on the document and the seed, not on other documents.

    Args:
        document: the document to take apart.
        methods: keys of `METHODS`.
        seed: seed of the random choices.
        passage_words: passages are cut to this many words.
    """
    for method, find in METHODS.items():
        if method not in methods:
            continue
        for found, text in find(document, seed, passage_words):
            query, passage = plain(found), cut(text.strip(), passage_words)
            if is_query(query) and count_words(passage) >= PASSAGE_LEAST and fold(query) != fold(passage):
                yield Pair(query, passage, method)


def is_query(text: str, least: int = 1) -> bool:
    """Whether a text of one line has enough words, not too many words, and not too much punctuation."""
    signs = len(text) - len(text.translate(_NO_SIGNS))
    return least <= count_words(text) <= QUERY_MOST and signs <= SIGNS_MOST * len(text) and any(map(str.isalpha, text))


def _title(document: Document, seed: int, passage_words: int) -> Iterator[tuple[str, str]]:  # noqa: ARG001
    """The title asks for the text. If the first line of the text repeats the title, it is removed."""
    first, _, rest = document.text.lstrip().partition("\n")
    yield document.title, rest if fold(first) == fold(document.title) else document.text


def _first_sentence(document: Document, seed: int, passage_words: int) -> Iterator[tuple[str, str]]:  # noqa: ARG001
    """The first sentence that could be a query asks for the text after it."""
    for sentence in sentences(document.text):
        if _could_ask(document.text, sentence):
            yield document.text[sentence.start : sentence.end], document.text[sentence.end :]
            return


def _spans(document: Document, seed: int, passage_words: int) -> Iterator[tuple[str, str]]:
    """The inverse cloze task (Lee et al. 2019, https://arxiv.org/abs/1906.00300): a sentence asks for its context.

    The document is cut into blocks of whole sentences, at most ``passage_words`` words each. In every block, a random
    sentence is the query, and the rest of the block is the passage. In one block of ten, the sentence also stays in the
    passage, so that the model also learns that equal words are a sign of relevance.
    """
    text = document.text
    blocks = list(_blocks(text, passage_words))
    chosen = _draws(seed, document.key, 2 * len(blocks)).reshape(-1, 2)
    for (start, end, block), (which, stays) in zip(blocks, chosen, strict=True):
        candidates = [sentence for sentence in block if _could_ask(text, sentence)]
        if len(block) < 2 or not candidates:
            continue
        drawn = candidates[int(which) % len(candidates)]
        query = text[drawn.start : drawn.end]
        if float(stays) < KEPT_IN_PASSAGE * 2.0**64:
            yield query, text[start:end]
        else:
            yield query, text[start : drawn.start] + text[drawn.end : end].lstrip()


def _headings(document: Document, seed: int, passage_words: int) -> Iterator[tuple[str, str]]:  # noqa: ARG001
    """A heading asks for the section below it."""
    for section in sections(document.text):
        yield section.heading, section.body


METHODS: dict[str, Callable[[Document, int, int], Iterator[tuple[str, str]]]] = {
    TITLE: _title,
    FIRST_SENTENCE: _first_sentence,
    SPANS: _spans,
    HEADINGS: _headings,
}


def _could_ask(text: str, sentence: Sentence) -> bool:
    return sentence.is_prose and is_query(plain(text[sentence.start : sentence.end]), SENTENCE_LEAST)


def _blocks(text: str, most: int) -> Iterator[tuple[int, int, list[Sentence]]]:
    """Runs of whole sentences with at most ``most`` words: start, end and the sentences."""
    block: list[Sentence] = []
    words = 0
    for sentence in sentences(text):
        length = count_words(text[sentence.start : sentence.end])
        if block and words + length > most:
            yield block[0].start, block[-1].end, block
            block, words = [], 0
        block.append(sentence)
        words += length
    if block:
        yield block[0].start, block[-1].end, block


def _draws(seed: int, key: int, count: int) -> NDArray[np.uint64]:
    """``count`` times 64 random bits, a function of the seed, the document and the place."""
    state = np.full(count, seed, dtype=np.uint64)
    for word in (np.uint64(key), np.uint64(_SPANS), np.arange(count, dtype=np.uint64)):
        state = splitmix64(state ^ word)
    return state
