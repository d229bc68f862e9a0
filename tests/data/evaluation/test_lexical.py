"""BM25 beside its formula, and what it takes as a word."""

import math
import random

import pytest

from biencoder.data.evaluation.lexical import K1, B, lexical_ranking, words


def by_the_formula(queries: list[str], passages: list[str], k: int) -> list[list[int]]:
    """Robertson and Zaragoza 2009, eq. 3.15, document by document."""
    texts = [list(words(passage)) for passage in passages]
    mean = sum(map(len, texts)) / len(texts)
    ranked = []
    for query in queries:
        scores = []
        for text in texts:
            score = 0.0
            for word in set(words(query)):
                found = sum(word in each for each in texts)
                if found > 0.25 * len(texts):
                    continue
                rarity = math.log(1 + (len(texts) - found + 0.5) / (found + 0.5))
                count = text.count(word)
                score += rarity * count * (K1 + 1) / (count + K1 * (1 - B + B * len(text) / mean))
            scores.append(score)
        order = sorted(range(len(texts)), key=lambda i: (-round(scores[i], 9), i))
        ranked.append([i for i in order if scores[i] > 0][:k])
    return ranked


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_the_ranking_is_that_of_the_formula(k: int) -> None:
    draw = random.Random(0)
    vocabulary = [f"word{i}" for i in range(200)]
    passages = [
        " ".join(draw.choices(vocabulary, weights=[1 / (i + 1) for i in range(200)], k=draw.randint(1, 40)))
        for _ in range(150)
    ]
    queries = [" ".join(draw.sample(vocabulary, 4)) for _ in range(20)]
    got = lexical_ranking(queries, passages, k)
    assert [numbers.tolist() for numbers in got] == by_the_formula(queries, passages, k)


def test_a_word_is_what_stands_between_spaces_or_two_neighbours_where_there_are_none() -> None:
    assert list(words("Müller's 2nd ROUTER, (v2)")) == ["müller", "s", "2nd", "router", "v2"]
    assert list(words("東京タワー router 水")) == ["東京", "京タ", "タワ", "ワー", "router", "水"]
    assert list(words(" \n")) == []


def test_queries_and_passages_without_words() -> None:
    assert [x.tolist() for x in lexical_ranking(["", "!?", "router"], ["", "router", "?"], 3)] == [[], [], [1]]
    assert [x.tolist() for x in lexical_ranking(["router"], [], 3)] == [[]]
    assert lexical_ranking([], ["router"], 3) == []
