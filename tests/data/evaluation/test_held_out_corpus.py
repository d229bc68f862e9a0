"""Which passages an evaluation on held-out queries searches."""

import random
from pathlib import Path

from data_files import row, table_of

from biencoder.data.evaluation.held_out_corpus import held_out_corpus, passage_id
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
    queries, qrels = asked(table, [0, 1])
    assert nearly in held_out_corpus(table, queries, qrels, 100, seed=0).texts.values()  # the answer to another query
