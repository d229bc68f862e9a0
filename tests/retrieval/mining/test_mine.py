"""Mining against a brute-force reference that knows nothing of blocks, hashes or matrices."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hashing_encoder import HashingEncoder

from biencoder.config import MiningOptions
from biencoder.data.files.records import Example
from biencoder.data.table import ExampleTable
from biencoder.errors import UserError
from biencoder.retrieval.mining import corpus as candidates
from biencoder.retrieval.mining import mine as mining
from biencoder.retrieval.mining import queries, ranking
from biencoder.retrieval.mining.mine import Mined, mine

LOOSE = MiningOptions(negatives=3, depth=1000, max_share=10.0, existing="replace")


def table_of(folder: Path, rows: Sequence[dict[str, Any]]) -> ExampleTable:
    path = folder / "rows.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return ExampleTable.from_files([path])


def folded(text: str) -> str:
    return " ".join(text.split()).lower()


def variant(draw: random.Random, text: str) -> str:
    """The same text but for white space and case, or the very text."""
    words = [word.upper() if draw.random() < 0.3 else word for word in text.split(" ")]
    return draw.choice(["", " ", "\n"]) + draw.choice([" ", "  ", "\t"]).join(words) if draw.random() < 0.5 else text


def random_rows(seed: int, count: int = 60) -> list[dict[str, Any]]:
    """Queries that return in several rows, passages that return in other foldings, own negatives that are positives."""
    draw = random.Random(seed)
    passages = [" ".join(draw.choices([f"w{i}" for i in range(30)], k=draw.randint(2, 6))) for _ in range(40)]
    asked = [" ".join(draw.choices([f"w{i}" for i in range(30)], k=3)) for _ in range(25)] + passages[:5]
    rows = []
    for _ in range(count):
        row: dict[str, Any] = {
            "query": variant(draw, draw.choice(asked)),
            "pos": [variant(draw, text) for text in draw.sample(passages, draw.randint(1, 3))],
            "neg": [variant(draw, text) for text in draw.sample(passages, draw.randint(0, 3))],
        }
        if draw.random() < 0.2:
            row["prompt"] = "w1 w2 "
        rows.append(row)
    return rows


WIDE = HashingEncoder(dim=1024, normalize=False)  # no two of a few words share a dimension
ENCODER = HashingEncoder(dim=16, normalize=False, query_prompt="w3 ", passage_prompt="w4 ")


def similarity(example: Example, passage: str) -> float:
    prompt = ENCODER.query_prompt if example.prompt is None else example.prompt
    return float(ENCODER.encode([prompt + example.query])[0] @ ENCODER.encode_passages([passage])[0])


def reference(rows: Sequence[Example], options: MiningOptions, corpus: Sequence[str] | None) -> list[list[str]]:
    """What is mined for each row with ``choice="top"``, by the definition of every stage."""
    texts = corpus if corpus is not None else [text for row in rows for text in (*row.positives, *row.negatives)]
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(folded(text), text)
    pool = list(first.values())  # whose order decides between equal scores
    known: dict[str, set[str]] = {}
    for row in rows:
        known.setdefault(folded(row.query), set()).update(map(folded, row.positives))
    mined = []
    for row in rows:
        ranked = sorted(((similarity(row, text), -place, text) for place, text in enumerate(pool)), reverse=True)
        ranked = ranked[: options.depth]
        lowest = min(similarity(row, text) for text in row.positives)
        left = [(s, t) for s, _, t in ranked if folded(t) not in known[folded(row.query)]]
        left = [(s, t) for s, t in left if folded(t) != folded(row.query)]
        if options.existing == "keep":
            left = [(s, t) for s, t in left if folded(t) not in set(map(folded, row.negatives))]
        left = left[options.skip_top :]
        if options.max_score is not None:
            left = [(s, t) for s, t in left if s < options.max_score]
        if options.margin is not None:
            left = [(s, t) for s, t in left if s < lowest - options.margin]
        limit = options.max_share * lowest if lowest > 0 else lowest - (1 - options.max_share) * -lowest
        mined.append([t for s, t in left if s < limit][: options.negatives])
    return mined


OPTIONS = {
    "nothing but positives": LOOSE,
    "defaults": MiningOptions(),
    "depth": replace(LOOSE, depth=5),
    "skip": replace(LOOSE, skip_top=2),
    "ceiling": replace(LOOSE, max_score=4.0),
    "margin": replace(LOOSE, margin=2.0),
    "share": replace(LOOSE, max_share=0.6),
    "kept": replace(LOOSE, existing="keep"),
    "all": MiningOptions(negatives=4, depth=30, skip_top=1, max_score=7.0, margin=0.5, max_share=0.9),
}


@pytest.mark.parametrize("with_corpus", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_mining_is_what_its_stages_say(
    name: str, with_corpus: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS[name]
    table = table_of(tmp_path, random_rows(seed=1))
    rows = [table[i] for i in range(len(table))]
    corpus = None
    if with_corpus:  # some positives are in it in another folding, some are not; some texts stand in it twice
        texts = [text for row in rows[:40] for text in (*row.positives, *row.negatives)]
        corpus = [*(text.upper() for text in texts[::2]), *texts[1::3], " ", "w7 w8", rows[0].query]
    want = reference(rows, options, None if corpus is None else [text for text in corpus if text.strip()])
    whole = mine(ENCODER, table, options, corpus)
    assert [[text for text, _ in whole.mined(i)] for i in range(len(rows))] == want
    assert sum(map(len, want)) > 0
    monkeypatch.setattr(mining, "CELLS", 150)
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 4 * ENCODER.dim * 7)
    monkeypatch.setattr(queries, "PAIRS_AT_ONCE", 5)
    monkeypatch.setattr(candidates, "ENCODED_AT_ONCE", 11)
    in_blocks = mine(ENCODER, table, options, corpus)
    for field in ("indices", "scores", "positive_scores", "stages", "searched"):
        np.testing.assert_array_equal(getattr(in_blocks, field), getattr(whole, field))


def test_scores_are_those_of_the_very_texts(tmp_path: Path) -> None:
    table = table_of(tmp_path, random_rows(seed=2))
    mined = mine(ENCODER, table, replace(LOOSE, existing="keep"))
    for i in range(len(table)):
        example = table[i]
        places = range(*table.positive_hashes.offsets[i : i + 2].tolist())
        for text, place in zip(example.positives, places, strict=True):
            assert mined.positive_scores[place] == similarity(example, text)
        for text, score in mined.negatives(i, example):
            assert score == similarity(example, text)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("choice", ["top", "random"])
@pytest.mark.parametrize("existing", ["keep", "replace"])
def test_no_positive_comes_back_in_any_folding(seed: int, choice: str, existing: str, tmp_path: Path) -> None:
    table = table_of(tmp_path, random_rows(seed=seed + 10))
    mined = mine(ENCODER, table, replace(LOOSE, choice=choice, existing=existing))
    rows = [table[i] for i in range(len(table))]
    contradicted = 0
    for i, row in enumerate(rows):
        same = [other for other in rows if folded(other.query) == folded(row.query)]
        known = {folded(text) for other in same for text in other.positives}
        texts = [folded(text) for text, _ in mined.negatives(i, row)]
        assert not known & set(texts)
        assert folded(row.query) not in [folded(text) for text, _ in mined.mined(i)]
        kept = [text for text in row.negatives if folded(text) not in known] if existing == "keep" else []
        contradicted += len(row.negatives) - len(kept)
        assert texts[: len(kept)] == [folded(text) for text in kept]
        assert len(set(texts[len(kept) :]) - set(texts[: len(kept)])) == len(mined.mined(i)) == mined.counts[i]
    if existing == "keep":
        assert mined.contradicted.sum() == contradicted > 0


def test_a_random_choice_is_seeded_and_of_what_is_allowed(tmp_path: Path) -> None:
    table = table_of(tmp_path, random_rows(seed=3))
    allowed = mine(ENCODER, table, replace(LOOSE, negatives=40, depth=40))
    bits = [mine(ENCODER, table, replace(LOOSE, choice="random", seed=seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(bits[0].indices, bits[1].indices)
    assert (bits[0].indices != bits[2].indices).any()
    for i in range(len(table)):
        assert set(bits[0].mined(i)) <= set(allowed.mined(i))
        scores = [score for _, score in bits[0].mined(i)]
        assert scores == sorted(scores, reverse=True)


def test_each_different_query_is_encoded_once(tmp_path: Path) -> None:
    rows = [{"query": f"q{i % 3}", "pos": [f"p{i}"]} for i in range(12)]
    rows.append({"query": "q0", "pos": ["p99"], "prompt": "other "})
    encoder = HashingEncoder()
    told: list[int] = []

    def progress(total: int, done: int) -> Callable[[int], None]:
        assert (total, done) == (17, 0)
        return told.append

    mine(encoder, table_of(tmp_path, rows), LOOSE, progress=progress)
    assert encoder.texts_seen == 13 + 4
    assert told[-1] == 17


class WordReranker:
    """The logit is the share of the query's words in the passage, times ten."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        self.asked += pairs
        return np.array(
            [10 * np.mean([word in passage.split() for word in query.split()]) for query, passage in pairs], np.float32
        )


@pytest.mark.parametrize("choice", ["top", "random"])
def test_the_reranker_is_asked_only_for_what_would_be_chosen(
    choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = ["a b", "b a b", "a c", "b c", "a d", "c d", "d e", "e f"]
    table = table_of(tmp_path, [{"query": "a b", "pos": ["a b x", "a x"], "neg": passages}, {"query": "f", "pos": "f"}])
    options = replace(LOOSE, negatives=2, choice=choice, reranker_margin=2.0)
    allowed = [text for text, _ in mine(WIDE, table, replace(options, negatives=50)).mined(0)]
    monkeypatch.setattr(mining, "ROWS_A_VETO", 1)
    reranker = WordReranker()
    mined = mine(WIDE, table, options, reranker=reranker)
    chosen = [text for text, _ in mined.mined(0)]
    good = [text for text in allowed if WordReranker().score([("a b", text)])[0] < 5.0 - 2.0]
    assert chosen == good[:2] if choice == "top" else set(chosen) < set(good)
    assert len(chosen) == 2
    scored = [passage for query, passage in reranker.asked if query == "a b" and passage in allowed]
    vetoed = [passage for passage in scored if passage not in good]
    assert len(scored) == len(set(scored)) == len(vetoed) + 2
    removed = {stage: count for stage, count, _ in mined.stages}
    assert removed["the reranker's veto"] >= len(vetoed) > 0 or choice == "random"


def test_positives_that_the_corpus_lacks_are_counted(tmp_path: Path) -> None:
    table = table_of(
        tmp_path, [{"query": "q", "pos": ["Here it is q", "gone q"]}, {"query": "r", "pos": ["gone q", "r"]}]
    )
    mined = mine(WIDE, table, LOOSE, ["here  it IS q", "other"])
    assert mined.absent_positives == 2
    assert [text for text, _ in mined.mined(0)] == ["other"]


def test_a_corpus_without_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the corpus holds no text"):
        mine(ENCODER, table_of(tmp_path, [{"query": "q", "pos": "p"}]), LOOSE, [" "])


def test_a_model_whose_vectors_are_not_finite(tmp_path: Path) -> None:
    class Broken(HashingEncoder):
        def encode(self, *args: Any, **kwargs: Any) -> np.ndarray:
            return super().encode(*args, **kwargs) * np.float32(np.nan)

    with pytest.raises(UserError, match="passage 1: the vector has values that are not finite"):
        mine(Broken(), table_of(tmp_path, [{"query": "q", "pos": "p"}]), LOOSE)


def test_the_result_names_its_parts(tmp_path: Path) -> None:
    mined: Mined = mine(ENCODER, table_of(tmp_path, random_rows(seed=4)), MiningOptions())
    assert mined.searched == len(mined.table) * mined.candidates.searchable
    assert mined.stages[-1][2] == mined.counts.sum()
    lefts = [mined.searched, *(left for _, _, left in mined.stages)]
    assert all(before - removed == after for before, (_, removed, after) in zip(lefts, mined.stages, strict=False))


def near_topics(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of 20 topics, of which each has words of its own."""
    draw = random.Random(seed)
    topics = [[f"t{topic}w{i}" for i in range(9)] for topic in range(20)]
    return [
        {"query": " ".join(draw.sample(words, 4)), "pos": [" ".join([*draw.sample(words, 6), f"x{i}"])]}
        for i, words in enumerate(draw.choices(topics, k=count))
    ]


def test_among_many_passages_an_index_names_candidates_and_the_log_says_how_many_it_finds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = table_of(tmp_path, near_topics(seed=3, count=2000))
    encoder = HashingEncoder(dim=32)
    options = MiningOptions(negatives=3, depth=20, max_share=0.99)
    with caplog.at_level("INFO", "biencoder"):
        exact = mine(encoder, table, options)
        at_the_limit = mine(encoder, table, replace(options, exact_up_to=exact.candidates.searchable))
    assert caplog.text == ""
    np.testing.assert_array_equal(at_the_limit.indices, exact.indices)
    np.testing.assert_array_equal(at_the_limit.scores, exact.scores)
    with caplog.at_level("INFO", "biencoder"):
        found = mine(encoder, table, replace(options, exact_up_to=500))
    said = re.search(r"more than 500 passages .* which hold (\d+\.\d)% of what exact search finds for 200", caplog.text)
    assert said, caplog.text
    assert float(said[1]) >= 99
    assert (found.indices == exact.indices).mean() > 0.9
    same = found.indices == exact.indices
    np.testing.assert_allclose(found.scores[same], exact.scores[same], atol=1e-6)
