"""Questions that a language model writes about passages, one call per passage."""

import concurrent.futures
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from biencoder.data.random_bits import splitmix64
from biencoder.data.text import fold, text_hash
from biencoder.errors import UserError
from biencoder.pairs.asking.endpoint import CallCancelledError, Endpoint, UnusableAnswerError
from biencoder.pairs.asking.journal import Answer, Journal, digest
from biencoder.pairs.asking.questions import fill, parse
from biencoder.pairs.documents import Document
from biencoder.pairs.methods import PASSAGE_LEAST
from biencoder.pairs.sentences import count_words, cut
from biencoder.retrieval.text_encoder import Advance

HOPELESS = 20  # asking stops if this many answers came and none of them can be used


@dataclass(frozen=True)
class Asking:
    """What to ask, and which model.

    Attributes:
        prompt: the prompt, with ``{passage}`` in it.
        model: the generator's name.
        questions: how many questions to ask for per passage.
        passage_words: documents are cut to this many words.
    """

    prompt: str
    model: str
    questions: int
    passage_words: int

    def passage(self, document: Document) -> str:
        """Title and text as search sees them, cut to ``passage_words`` words."""
        return cut(document.whole.strip(), self.passage_words)

    def content(self, passage: str) -> str:
        """The message for a passage."""
        return fill(self.prompt, passage, self.questions)

    def key(self, content: str) -> str:
        """The key of the answer in the journal."""
        return digest(self.model, content)


def choose(asking: Asking, documents: Iterable[Document], most: int | None, seed: int) -> NDArray[np.bool_]:
    """Which documents to ask about, bool ``[n]``: each passage once, no passage that is too short, at most ``most``.

    If there are more, a sample is drawn. It depends on the passages and the seed, so a larger ``most`` only adds to it.
    """
    hashes, long_enough = array("Q"), array("B")
    for document in documents:
        passage = asking.passage(document)
        hashes.append(text_hash(fold(passage)))
        long_enough.append(count_words(passage) >= PASSAGE_LEAST)
    values = np.frombuffer(hashes, dtype=np.uint64) if hashes else np.empty(0, np.uint64)
    _, first = np.unique(values, return_index=True)
    first = first[np.frombuffer(long_enough, dtype=np.bool_)[first]] if hashes else first
    if most is not None:
        order = np.argsort(splitmix64(values[first] ^ splitmix64(np.array([seed], dtype=np.uint64))), kind="stable")
        first = first[order[:most]]
    chosen = np.zeros(len(values), dtype=np.bool_)
    chosen[first] = True
    return chosen


@dataclass
class Calls:
    """The calls that are left: their number, their characters in all, and the answers known from an earlier run."""

    calls: int = 0
    characters: int = 0
    known: int = 0


def count_calls(asking: Asking, documents: Iterable[Document], journal: Journal) -> Calls:
    """Count the calls that asking about these documents takes."""
    calls = Calls()
    for document in documents:
        content = asking.content(asking.passage(document))
        if asking.key(content) in journal:
            calls.known += 1
        else:
            calls.calls += 1
            calls.characters += len(content)
    return calls


@dataclass
class Answers:
    """What the answers held.

    Attributes:
        questions: number of usable questions.
        faults: number of answers without a usable question, by kind.
    """

    questions: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """The faults, most frequent first: ``3 not JSON, 1 empty``."""
        return ", ".join(f"{count:,} {kind}" for kind, count in self.faults.most_common())


class Interview:
    """Calls the endpoint, several calls at a time, and writes every answer to the journal as it arrives.

    Args:
        asking: what to ask.
        endpoint: where to ask.
        journal: where answers go; a question that it answers is not asked again.
        concurrency: calls at a time.
    """

    def __init__(self, asking: Asking, endpoint: Endpoint, journal: Journal, concurrency: int) -> None:
        self._asking, self._endpoint, self._journal = asking, endpoint, journal
        self._concurrency = concurrency
        self._answers = Answers()
        self._made = 0
        self._pending: dict[concurrent.futures.Future[str], tuple[str, str]] = {}

    def run(self, documents: Iterable[Document], progress: Advance) -> Answers:
        """Ask about every document. The result counts the new answers and the refused calls.

        Raises:
            UserError: the endpoint takes no calls, or none of its first answers can be used. Before this is raised, the
                answers to calls in progress are waited for and kept.
        """
        with concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool:
            try:
                for document in documents:
                    passage = self._asking.passage(document)
                    content = self._asking.content(passage)
                    key = self._asking.key(content)
                    if key in self._journal:
                        continue
                    if len(self._pending) == self._concurrency:
                        self._collect(progress)
                    self._pending[pool.submit(self._endpoint.ask, content)] = (key, passage)
                while self._pending:
                    self._collect(progress)
            except BaseException:
                self._endpoint.stop.set()
                self._keep_the_rest()
                raise
        return self._answers

    def _collect(self, progress: Advance) -> None:
        done, _ = concurrent.futures.wait(self._pending, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            key, passage = self._pending.pop(future)
            self._keep(future, key, passage)
            self._made += 1
            progress(self._made)

    def _keep(self, future: "concurrent.futures.Future[str]", key: str, passage: str) -> None:
        try:
            answer, detail = Answer(future.result()), ""
        except UnusableAnswerError as nonsense:
            if not nonsense.paid:
                self._fault(str(nonsense), nonsense.detail)
                return
            answer, detail = Answer("", str(nonsense)), nonsense.detail
        self._journal.add(key, answer)
        if not parse(answer.text, passage, 1):
            self._fault(answer.fault or "no question", detail or answer.text)
        else:
            self._answers.questions += 1

    def _fault(self, kind: str, detail: str) -> None:
        self._answers.faults[kind] += 1
        if not self._answers.questions and self._answers.faults.total() >= HOPELESS:
            raise UserError(
                f"--generator {self._endpoint.url}: none of {self._answers.faults.total()} answers can be used "
                f"({self._answers.describe()}); the last: {' '.join(detail.split())[:200]}"
            )

    def _keep_the_rest(self) -> None:
        for future, (key, _) in self._pending.items():
            try:
                self._journal.add(key, Answer(future.result()))
            except UnusableAnswerError as nonsense:
                if nonsense.paid:
                    self._journal.add(key, Answer("", str(nonsense)))
            except (CallCancelledError, UserError):
                continue


def read_answers(
    asking: Asking, documents: Iterable[Document], journal: Journal, answers: Answers
) -> Iterator[tuple[Document, str, list[str]]]:
    """Documents in order, each with its passage and the questions about it; counts these in ``answers``.

    Documents without an answer in the journal are left out: the endpoint refused them.
    """
    for document in documents:
        passage = asking.passage(document)
        key = asking.key(asking.content(passage))
        if key in journal:
            answer = journal[key]
            questions = parse(answer.text, passage, asking.questions)
            answers.questions += len(questions)
            if not questions:
                answers.faults[answer.fault or "no question"] += 1
            yield document, passage, questions
