import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from language_model import LanguageModel, Reply, says

from biencoder.errors import UserError
from biencoder.pairs.asking.endpoint import Endpoint
from biencoder.pairs.asking.generate import Answers, Asking, Calls, Interview, choose, count_calls, read_answers
from biencoder.pairs.asking.journal import Journal
from biencoder.pairs.documents import Document

ASKING = Asking("Ask: {passage}", "m", 1, 30)
DOCUMENTS = [Document("", f"Document number {number} has just about as many words as it needs.") for number in range(9)]


def interview(server: LanguageModel, journal: Journal, documents: Iterable[Document], concurrency: int) -> Answers:
    return Interview(ASKING, Endpoint(server.url, "m", 5), journal, concurrency).run(documents, lambda _: None)


def test_each_passage_is_chosen_once_and_short_ones_never() -> None:
    documents = [*DOCUMENTS[:2], Document("", "too short"), DOCUMENTS[0], Document("", DOCUMENTS[1].text.upper())]
    assert choose(ASKING, documents, None, 1).tolist() == [True, True, False, False, False]
    assert choose(ASKING, [], None, 1).tolist() == []
    assert choose(ASKING, [Document("", "short")], 3, 1).tolist() == [False]
    samples = {tuple(choose(ASKING, DOCUMENTS, 4, seed).tolist()) for seed in range(10)}
    assert {sum(sample) for sample in samples} == {4}
    assert len(samples) > 5


def test_passages_are_title_and_text_cut() -> None:
    assert ASKING.passage(Document("A title", "and then " + "word " * 50)).split() == [
        "A", "title", "and", "then", *["word"] * 26,
    ]  # fmt: skip


def test_calls_are_counted_before_and_made_in_any_order(tmp_path: Path) -> None:
    barrier = threading.Barrier(3, timeout=10)

    def answer(content: str, _: int) -> Reply:
        barrier.wait()  # three calls at a time, or none is answered
        return says(f"What is said of {content.split()[3]} there?")

    with Journal(tmp_path / "j") as journal, LanguageModel(answer) as server:
        characters = sum(len(ASKING.content(document.text)) for document in DOCUMENTS)
        assert count_calls(ASKING, DOCUMENTS, journal) == Calls(9, characters, 0)
        assert interview(server, journal, DOCUMENTS, 3) == Answers(9)
        assert count_calls(ASKING, DOCUMENTS, journal) == Calls(0, 0, 9)
        answers = Answers()
        assert list(read_answers(ASKING, DOCUMENTS, journal, answers)) == [
            (document, document.text, [f"What is said of {number} there?"]) for number, document in enumerate(DOCUMENTS)
        ]
        assert answers == Answers(9)


def test_answers_under_way_when_another_call_ends_the_run_are_kept(tmp_path: Path) -> None:
    under_way = threading.Barrier(3)

    def answer(content: str, _: int) -> Reply:
        if any(f"number {first}" in content for first in range(3)):
            under_way.wait(10)
        return Reply(status=401) if "number 1" in content else says("What is it about?")

    with Journal(tmp_path / "j") as journal, LanguageModel(answer) as server:
        with pytest.raises(UserError, match="401"):
            interview(server, journal, DOCUMENTS, 3)
        asked = [number for number, d in enumerate(DOCUMENTS) if ASKING.key(ASKING.content(d.text)) in journal]
    assert asked[:2] == [0, 2]
    assert len(server.calls) == len(asked) + 1 < 9
