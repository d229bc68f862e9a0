"""Which passages an evaluation on held-out queries searches: all of them, or those that are hardest to tell apart.

Among a few random passages, every model finds the right one. So a corpus that cannot hold all passages holds those
that share most words with the queries. Figures on it come near to those on all passages, and are still a little higher.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from biencoder.data.evaluation.lexical import lexical_ranking, words
from biencoder.data.random_bits import splitmix64
from biencoder.data.table import ExampleTable

CANDIDATES = 100  # passages of a query that share its words and may come into the corpus
MOST_READ = 100_000  # passages that are looked through for candidates
SHINGLE = 3  # words that stand together
SAME = 0.8  # share of shingles from which two passages count as the same: Broder 1997, "On the resemblance…"


class HeldOutCorpus(NamedTuple):
    """The passages of an evaluation.

    Attributes:
        texts: id -> text.
        note: a phrase that counts them, for people.
    """

    texts: dict[str, str]
    note: str


def held_out_corpus(
    table: ExampleTable, queries: Sequence[str], qrels: Sequence[Mapping[str, int]], size: int, seed: int
) -> HeldOutCorpus:
    """All positives of held-out queries, and other passages of the data up to ``size``.

    Passages that say nearly the same as a positive of the same query are left out: a model that prefers one to the
    other is not wrong. The choice depends on texts and seed alone.

    Args:
        table: the rows whose positives and negatives are the passages.
        queries: the held-out queries.
        qrels: of each query, the ids of its positives.
        size: of the corpus; it holds all positives, even if there are more.
        seed: decides what fills the corpus if candidates are too few.
    """
    hashes = np.concatenate([table.positive_hashes.values, table.negative_hashes.values])
    distinct, place = np.unique(hashes, return_index=True)
    ids = [passage_id(value) for value in distinct]
    needed = {document for judged in qrels for document in judged}
    is_needed = np.fromiter((each in needed for each in ids), dtype=np.bool_, count=len(ids))
    others = np.flatnonzero(~is_needed)
    shuffled = others[in_seeded_order(distinct[others], seed)]
    looked_at = np.sort(shuffled[:MOST_READ])
    ranked = lexical_ranking(queries, (_text(table, int(place[i])) for i in looked_at), CANDIDATES)
    candidates = [looked_at[numbers] for numbers in ranked]

    texts = {ids[i]: _text(table, int(place[i])) for i in np.flatnonzero(is_needed)}
    same = _near_duplicates(candidates, qrels, texts, lambda i: _text(table, int(place[i])))
    wanted = max(0, size - len(texts))
    chosen = dict.fromkeys(i for i in _first_of_each(candidates, shuffled) if i not in same)
    for i in list(chosen)[:wanted]:
        texts[ids[i]] = _text(table, int(place[i]))
    alike = {int(i) for numbers in candidates for i in numbers} - same
    note = _note(len(texts), len(distinct), len(same), at_random=wanted > len(alike))
    return HeldOutCorpus(dict(sorted(texts.items())), note)


def in_seeded_order(hashes: NDArray[np.uint64], seed: int) -> NDArray[np.int64]:
    """Indices of the hashes in a seeded shuffle of the texts."""
    key = splitmix64(np.array([seed], dtype=np.uint64))
    return np.argsort(splitmix64(hashes ^ key), kind="stable")


def passage_id(value: np.uint64) -> str:
    """The id of a passage with this hash."""
    return f"p{value:016x}"


def _first_of_each(candidates: list[NDArray[np.int64]], rest: NDArray[np.int64]) -> Iterator[int]:
    """The best candidate of every query, then the second best of every query, and so on; then the rest."""
    for rank in range(CANDIDATES):
        yield from (int(numbers[rank]) for numbers in candidates if rank < len(numbers))
    yield from rest.tolist()


def _near_duplicates(
    candidates: list[NDArray[np.int64]],
    qrels: Sequence[Mapping[str, int]],
    positives: dict[str, str],
    text_of: Callable[[int], str],
) -> set[int]:
    """The candidates that say nearly the same as a positive of the same query."""
    found = set()
    for numbers, judged in zip(candidates, qrels, strict=True):
        relevant = [_shingles(positives[document]) for document in judged]
        for number in numbers.tolist():
            shingles = _shingles(text_of(number))
            if any(_resemblance(shingles, each) >= SAME for each in relevant):
                found.add(number)
    return found


def _shingles(text: str) -> set[tuple[str, ...]]:
    said = list(words(text))
    return {tuple(said[i : i + SHINGLE]) for i in range(max(1, len(said) - SHINGLE + 1))}


def _resemblance(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)


def _note(count: int, passages: int, same: int, *, at_random: bool) -> str:
    left_out = f", {same:,} near-duplicate{'s' if same > 1 else ''} of answers left out" if same else ""
    if count + same == passages:
        return f"{count:,} passages{left_out}"
    which = "all answers, and those that share most words with the queries"
    if at_random:
        which = "all answers, those that share most words with the queries, and others at random"
    return f"{count:,} of {passages:,} passages ({which}){left_out}"


def _text(table: ExampleTable, place: int) -> str:
    """The passage at a place in the table's positives followed by its negatives."""
    positives = len(table.positive_hashes.values)
    ragged = table.positive_hashes if place < positives else table.negative_hashes
    place -= 0 if place < positives else positives
    row = int(np.searchsorted(ragged.offsets, place, side="right")) - 1
    example = table[row]
    texts = example.positives if ragged is table.positive_hashes else example.negatives
    return texts[place - int(ragged.offsets[row])]
