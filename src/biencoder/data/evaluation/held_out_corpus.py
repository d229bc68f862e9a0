"""Which passages an evaluation on held-out queries searches: all of them, or those that are hardest to tell apart.

Among a few random passages, every model finds the right one. So a corpus that cannot hold all passages holds those
that a first look finds near the queries, those near their answers, and those that share most words with the queries.
Figures on it come near to those on all passages, and are still a little higher.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from biencoder.data.evaluation.lexical import lexical_ranking, words
from biencoder.data.random_bits import splitmix64
from biencoder.data.table import ExampleTable

CANDIDATES = 100  # passages that each way of looking finds for a query, and that may come into the corpus
MOST_READ = 100_000  # passages that are looked through for candidates
SHINGLE = 3  # words that stand together
SAME = 0.8  # share of shingles from which two passages count as the same: Broder 1997, "On the resemblance…"

Shingle = tuple[str, ...]
Ranked = Sequence[NDArray[np.int64]]  # for each text, numbers of passages, nearest first


class Nearest(NamedTuple):
    """A first look at passages.

    Attributes:
        find: from queries, their answers, some passages and k, to the k passages nearest to each query and answer.
        most: how many passages it may look at.
    """

    find: Callable[[Sequence[str], Sequence[str], Sequence[str], int], tuple[Ranked, Ranked]]
    most: int


class HeldOutCorpus(NamedTuple):
    """The passages of an evaluation.

    Attributes:
        texts: id -> text.
        note: a phrase that counts them, for people.
    """

    texts: dict[str, str]
    note: str


def held_out_corpus(
    table: ExampleTable,
    queries: Sequence[str],
    qrels: Sequence[Mapping[str, int]],
    size: int,
    seed: int,
    nearest: Nearest | None = None,
) -> HeldOutCorpus:
    """All positives of held-out queries, and other passages of the data up to ``size``.

    Passages that say nearly the same as a positive are left out: a model that prefers one to the other is not wrong.
    The choice depends on the texts, the seed and the first look.

    Args:
        table: the rows whose positives and negatives are the passages.
        queries: the held-out queries.
        qrels: of each query, the ids of its positives.
        size: of the corpus; it holds all positives, even if there are more.
        seed: decides what fills the corpus if candidates are too few.
        nearest: a first look at the passages, if not all of them fit; None for none.
    """
    passages = _Passages(table)
    needed = {document for judged in qrels for document in judged}
    is_needed = np.isin(passages.hashes, _hashes_of(needed))
    others = np.flatnonzero(~is_needed)
    shuffled = others[in_seeded_order(passages.hashes[others], seed)]
    texts = {passages.id(i): passages.text(i) for i in np.flatnonzero(is_needed).tolist()}
    read, unread = shuffled[:MOST_READ], shuffled[MOST_READ:]
    same = _near_duplicates(texts.values(), _Texts(passages, read))
    read = read[~same]
    wanted = max(0, size - len(texts))
    candidates: list[Ranked] = []
    if wanted < len(read) + len(unread):
        if nearest is not None and len(read):
            candidates += _near(queries, qrels, texts, passages, read[: nearest.most], nearest)
        candidates.append(_lexical(queries, passages, read))
    found = dict.fromkeys(_first_of_each(candidates))
    for i in islice(_distinct(chain(found, map(int, read), map(int, unread))), wanted):
        texts[passages.id(i)] = passages.text(i)
    note = _note(
        len(texts),
        len(passages.hashes),
        int(same.sum()),
        with_nearest=len(candidates) > 1,
        at_random=wanted > len(found),
    )
    return HeldOutCorpus(dict(sorted(texts.items())), note)


def same_corpus(table: ExampleTable, ids: Sequence[str]) -> dict[str, str] | None:
    """The passages of an earlier corpus, by id; None if the table does not have all of them."""
    passages, wanted = _Passages(table), sorted(ids)
    try:
        hashes = _hashes_of(wanted)
    except ValueError:
        return None  # ids of another kind of corpus
    if not np.isin(hashes, passages.hashes).all():
        return None
    numbers = np.searchsorted(passages.hashes, hashes).tolist()
    return {each: passages.text(number) for each, number in zip(wanted, numbers, strict=True)}


def in_seeded_order(hashes: NDArray[np.uint64], seed: int) -> NDArray[np.int64]:
    """Indices of the hashes in a seeded shuffle of the texts."""
    key = splitmix64(np.array([seed], dtype=np.uint64))
    return np.argsort(splitmix64(hashes ^ key), kind="stable")


def passage_id(value: np.uint64) -> str:
    """The id of a passage with this hash."""
    return f"p{value:016x}"


def _hashes_of(ids: Collection[str]) -> NDArray[np.uint64]:
    return np.fromiter((int(each[1:], 16) for each in ids), np.uint64, count=len(ids))


class _Passages:
    """The distinct passages of a table, in the order of their hashes."""

    def __init__(self, table: ExampleTable) -> None:
        hashes = np.concatenate([table.positive_hashes.values, table.negative_hashes.values])
        self.hashes, self._place = np.unique(hashes, return_index=True)
        self._table = table

    def id(self, number: int) -> str:
        return passage_id(self.hashes[number])

    def text(self, number: int) -> str:
        return _text(self._table, int(self._place[number]))


class _Texts(Sequence[str]):
    """Some passages, of which each is read from the table when it is asked for."""

    def __init__(self, passages: _Passages, numbers: NDArray[np.int64]) -> None:
        self._passages, self._numbers = passages, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self._passages.text(number) for number in self._numbers[at]]
        return self._passages.text(self._numbers[at])


def _lexical(queries: Sequence[str], passages: _Passages, looked_at: NDArray[np.int64]) -> Ranked:
    ranked = lexical_ranking(queries, iter(_Texts(passages, looked_at)), CANDIDATES)
    return [looked_at[numbers] for numbers in ranked]


def _near(
    queries: Sequence[str],
    qrels: Sequence[Mapping[str, int]],
    positives: dict[str, str],
    passages: _Passages,
    looked_at: NDArray[np.int64],
    nearest: Nearest,
) -> tuple[Ranked, Ranked]:
    """For each query, passages near it, and passages near its answers: the nearest of every answer first."""
    answers = {document: number for number, document in enumerate(positives)}
    near_query, near_answer = nearest.find(
        queries, list(positives.values()), _Texts(passages, looked_at), min(CANDIDATES, len(looked_at))
    )
    near_answers = [
        np.stack([near_answer[answers[document]] for document in judged], axis=1).ravel()[:CANDIDATES]
        for judged in qrels
    ]
    return [looked_at[numbers] for numbers in near_query], [looked_at[numbers] for numbers in near_answers]


def _first_of_each(candidates: Sequence[Ranked]) -> Iterator[int]:
    """The best candidates of every query, then the second best of every query, and so on."""
    for rank in range(CANDIDATES):
        for ranked in zip(*candidates, strict=True):
            yield from (int(numbers[rank]) for numbers in ranked if rank < len(numbers))


def _distinct(numbers: Iterable[int]) -> Iterator[int]:
    """Each number once, at its first place; it is asked for as many as are needed."""
    seen: set[int] = set()
    for number in numbers:
        if number not in seen:
            seen.add(number)
            yield number


def _near_duplicates(answers: Iterable[str], passages: Iterable[str]) -> NDArray[np.bool_]:
    """Which passages say nearly the same as an answer, bool ``[N]``.

    Two texts that share so much share one of the rarest shingles of the first: Chaudhuri et al. 2006, "A primitive
    operator for similarity joins in data cleaning". So a passage is compared with few answers.
    """
    shingles_of = [_shingles(answer) for answer in answers]
    known = Counter(chain.from_iterable(shingles_of))
    owners: dict[Shingle, list[int]] = {}
    for number, shingles in enumerate(shingles_of):
        rarest = sorted(shingles, key=lambda shingle: (known[shingle], shingle))
        for shingle in rarest[: int((1 - SAME) * len(shingles)) + 1]:
            owners.setdefault(shingle, []).append(number)
    found = []
    for text in passages:
        shingles = _shingles(text)
        compared = set(chain.from_iterable(owners[each] for each in shingles & owners.keys()))
        found.append(any(_resemblance(shingles, shingles_of[number]) >= SAME for number in compared))
    return np.array(found, dtype=np.bool_)


def _shingles(text: str) -> set[Shingle]:
    said = list(words(text))
    return {tuple(said[i : i + SHINGLE]) for i in range(max(1, len(said) - SHINGLE + 1))}


def _resemblance(one: set[Shingle], other: set[Shingle]) -> float:
    return len(one & other) / len(one | other)


def _note(count: int, passages: int, same: int, *, with_nearest: bool, at_random: bool) -> str:
    left_out = f", {same:,} near-duplicate{'s' if same > 1 else ''} of answers left out" if same else ""
    if count + same == passages:
        return f"{count:,} passages{left_out}"
    which = ["all answers"]
    if with_nearest:
        which.append("those nearest to queries and answers")
    which.append("those that share most words with the queries")
    if at_random:
        which.append("others at random")
    return f"{count:,} of {passages:,} passages ({', '.join(which[:-1])}, and {which[-1]}){left_out}"


def _text(table: ExampleTable, place: int) -> str:
    """The passage at a place in the table's positives followed by its negatives."""
    positives = len(table.positive_hashes.values)
    ragged = table.positive_hashes if place < positives else table.negative_hashes
    place -= 0 if place < positives else positives
    row = int(np.searchsorted(ragged.offsets, place, side="right")) - 1
    example = table[row]
    texts = example.positives if ragged is table.positive_hashes else example.negatives
    return texts[place - int(ragged.offsets[row])]
