"""Which passages an evaluation on held-out queries searches."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from data_files import row, table_of

from biencoder.data.evaluation import held_out_corpus as module
from biencoder.data.evaluation.held_out_corpus import Nearest, Ranked, held_out_corpus, passage_id, same_corpus
from biencoder.data.table import ExampleTable

TOPICS = [f"topic{i}" for i in range(20)]


def data(folder: Path) -> ExampleTable:
    """Ten passages about each of 20 topics; each is the answer to a query about its topic."""
    draw = random.Random(0)
    texts = [" ".join([topic, *(f"w{draw.randrange(3000)}" for _ in range(30))]) for topic in TOPICS for _ in range(10)]
    return table_of(folder, [row(f"what is {text.split()[0]} {i}", text) for i, text in enumerate(texts)])


def asked(table: ExampleTable, rows: list[int]) -> tuple[list[str], list[dict[str, int]]]:
    ids = [passage_id(table.positive_hashes.values[table.positive_hashes.offsets[i]]) for i in rows]
    return [table[i].query for i in rows], [{each: 1} for each in ids]


def test_a_corpus_that_cannot_hold_all_holds_what_is_hard_to_tell_from_the_answers(tmp_path: Path) -> None:
    table = data(tmp_path)
    queries, qrels = asked(table, [0, 10])
    corpus = held_out_corpus(table, queries, qrels, 20, seed=0)
    topics = [text.split()[0] for text in corpus.texts.values()]
    assert (topics.count("topic0"), topics.count("topic1")) == (10, 10)
    assert {document for judged in qrels for document in judged} < set(corpus.texts)
    assert corpus.note == "20 of 200 passages (all answers, and those that share most words with the queries)"
    smaller = held_out_corpus(table, queries, qrels, 12, seed=0)
    assert [text.split()[0] for text in smaller.texts.values()].count("topic0") == 6  # the queries take turns
    assert smaller.texts.items() < corpus.texts.items()


def test_the_rest_is_drawn_by_the_seed(tmp_path: Path) -> None:
    table = data(tmp_path)
    queries, qrels = asked(table, [0])
    one, again, other = (held_out_corpus(table, queries, qrels, 50, seed) for seed in (0, 0, 1))
    assert one == again
    assert len(one.texts) == len(other.texts) == 50
    assert one.texts != other.texts
    which = "all answers, those that share most words with the queries, and others at random"
    assert one.note == f"50 of 200 passages ({which})"
    assert held_out_corpus(table, queries, qrels, 1000, 0).note == "200 passages"


def test_what_says_nearly_the_same_as_an_answer_is_left_out(tmp_path: Path) -> None:
    answer = " ".join(f"w{i}" for i in range(60))
    nearly, half = f"{answer} indeed", " ".join([*answer.split()[:30], *(f"v{i}" for i in range(30))])
    rows = [row("w1 w2", answer), row("w50", nearly), row("other w3", half), *(row(f"q{i}", f"p{i}") for i in range(9))]
    table = table_of(tmp_path, rows)
    queries, qrels = asked(table, [0])
    corpus = held_out_corpus(table, queries, qrels, 100, seed=0)
    assert nearly not in corpus.texts.values()
    assert {answer, half} < set(corpus.texts.values())
    assert corpus.note == "11 passages, 1 near-duplicate of answers left out"
    assert same_corpus(table, list(corpus.texts)) == corpus.texts
    assert same_corpus(table, [*corpus.texts, "p0"]) is None
    queries, qrels = asked(table, [0, 1])
    assert nearly in held_out_corpus(table, queries, qrels, 100, seed=0).texts.values()  # the answer to another query


def test_a_first_look_names_passages_that_share_no_words(tmp_path: Path) -> None:
    table = data(tmp_path)
    queries, qrels = asked(table, [0, 10])
    looked: list[int] = []

    def find(queries: Sequence[str], answers: Sequence[str], passages: Sequence[str], k: int) -> tuple[Ranked, Ranked]:
        assert list(queries) == [table[i].query for i in (0, 10)]
        assert set(answers) == {table[i].positives[0] for i in (0, 10)}
        looked.append(len(passages))
        topic = np.array([int(text.split()[0].removeprefix("topic")) for text in passages])
        near = [np.flatnonzero(topic == wanted)[:k] for wanted in (5, 6)]
        return near, [each[::-1] for each in near]

    corpus = held_out_corpus(table, queries, qrels, 32, 0, Nearest(find, 1000))
    topics = [text.split()[0] for text in corpus.texts.values()]
    assert (topics.count("topic5"), topics.count("topic6")) == (10, 10)
    assert "those nearest to queries and answers" in corpus.note
    held_out_corpus(table, queries, qrels, 32, 0, Nearest(find, 50))
    held_out_corpus(table, queries, qrels, 200, 0, Nearest(find, 50))  # all fit, so nobody looks
    assert looked == [198, 50]


def test_near_duplicates_are_those_that_a_comparison_of_all_pairs_finds() -> None:
    draw = random.Random(1)
    answers = [" ".join(f"w{draw.randrange(12)}" for _ in range(draw.randrange(1, 40))) for _ in range(60)]
    passages = []
    for _ in range(400):
        said = draw.choice(answers).split()
        for _ in range(draw.randrange(4)):
            said[draw.randrange(len(said))] = f"w{draw.randrange(12)}"
        passages.append(" ".join(said[: draw.randrange(1, 45)]))
    shingles = [module._shingles(answer) for answer in answers]
    truth = [
        any(module._resemblance(module._shingles(text), each) >= module.SAME for each in shingles) for text in passages
    ]
    assert 20 < sum(truth) < 380
    np.testing.assert_array_equal(module._near_duplicates(answers, passages), truth)


@pytest.mark.parametrize("passages", [[], ["something else"]])
def test_nothing_is_a_near_duplicate_of_nothing(passages: list[str]) -> None:
    assert module._near_duplicates(["an answer"], passages).tolist() == [False] * len(passages)
