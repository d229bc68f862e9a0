import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashing_encoder import HashingEncoder

from biencoder.commands import search as search_command
from biencoder.commands.search import run
from biencoder.config import SearchConfig
from biencoder.errors import UserError
from biencoder.retrieval.encode import encode_file
from biencoder.retrieval.search_texts import Hit, search_texts
from biencoder.retrieval.text_encoder import Advance

CORPUS = [f"text {i} about topic{i % 10} and thing{i % 7}" for i in range(100)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl.gz"
    rows = (json.dumps({"_id": f"d{i}", "title": "", "text": text}) for i, text in enumerate(CORPUS))
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    return path


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> HashingEncoder:
    encoder = HashingEncoder(dim=256)
    monkeypatch.setattr(search_command, "load_encoder", lambda _: encoder)
    return encoder


def expected(query: str, k: int) -> list[Hit]:
    encoder = HashingEncoder(dim=256)
    scores = (encoder.encode_queries([query]) @ encoder.encode_passages(CORPUS).T)[0]
    order = np.argsort(-scores.round(5), kind="stable")[:k]
    return [Hit(f"d{i}", CORPUS[i], float(scores[i])) for i in order]


def assert_found(hits: list[Hit], query: str, k: int) -> None:
    right = expected(query, k)
    assert [(hit.id, hit.text) for hit in hits] == [(hit.id, hit.text) for hit in right]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in right], abs=1e-6)


@pytest.mark.parametrize("block_rows", [7, 1000])
def test_finds_the_best_texts(
    encoder: HashingEncoder, corpus: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    monkeypatch.setattr("biencoder.retrieval.search_texts.BLOCK_BYTES", 4 * encoder.dim * block_rows)
    queries = ["topic3", "thing5 topic1", "text 42"]
    started: list[tuple[int, int]] = []
    seen: list[int] = []

    def progress(total: int, done: int) -> Advance:
        started.append((total, done))
        return seen.append

    hits = search_texts(encoder, queries, corpus, 10, progress=progress)
    assert len(hits) == 3
    for found, query in zip(hits, queries, strict=True):
        assert_found(found, query, 10)
    assert started == [(100, 0)]
    assert seen == list(range(1, 101))


def test_embeddings_of_the_corpus_give_the_same_hits_without_encoding_it(
    encoder: HashingEncoder, corpus: Path, tmp_path: Path
) -> None:
    encode_file(HashingEncoder(dim=256), corpus, tmp_path / "corpus.npy")
    (hits,) = search_texts(encoder, ["topic3"], corpus, 10, embeddings=tmp_path / "corpus.npy")
    assert_found(hits, "topic3", 10)
    assert encoder.texts_seen == 1


def test_a_matrix_without_description_is_taken(encoder: HashingEncoder, corpus: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", HashingEncoder(dim=256).encode_passages(CORPUS))
    (hits,) = search_texts(encoder, ["topic3"], corpus, 5, embeddings=tmp_path / "own.npy")
    assert_found(hits, "topic3", 5)


def test_embeddings_of_something_else_are_refused(encoder: HashingEncoder, corpus: Path, tmp_path: Path) -> None:
    other_texts = tmp_path / "other.txt"
    other_texts.write_text("\n".join(reversed(CORPUS)))
    encode_file(encoder, other_texts, tmp_path / "texts.npy")
    encode_file(HashingEncoder(dim=256, passage_prompt="x "), corpus, tmp_path / "model.npy")
    np.save(tmp_path / "rows.npy", np.zeros((99, 256), np.float32))
    np.save(tmp_path / "dim.npy", np.zeros((100, 64), np.float32))
    np.save(tmp_path / "type.npy", np.zeros((100, 256), np.float64))
    not_finite = encoder.encode_passages(CORPUS)
    not_finite[41, 5] = np.nan
    np.save(tmp_path / "finite.npy", not_finite)
    (tmp_path / "text.npy").write_text("no matrix")
    for name, message in {
        "texts": "made from texts other",
        "model": "made with another model",
        "rows": "holds vectors of 99 texts, of 256 dimensions, but .* has 100 texts",
        "dim": "of 64 dimensions, .* the model makes 256",
        "type": "must hold a float32 matrix",
        "finite": "vector 42: the vector has values that are not finite",
        "text": "cannot be read as a .npy file",
        "missing": "missing.npy: cannot be read",
    }.items():
        with pytest.raises(UserError, match=f"--corpus-embeddings .*{message}"):
            search_texts(encoder, ["topic3"], corpus, 5, embeddings=tmp_path / f"{name}.npy")


@pytest.mark.usefixtures("encoder")
def test_one_query_is_answered_in_the_terminal(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(SearchConfig(model="m", corpus=corpus, query="topic3 [bold]", top_k=3))
    printed = capsys.readouterr().out
    assert "query: topic3 [bold]" in printed
    for hit in expected("topic3 bold", 3):
        assert hit.id in printed
        assert hit.text in printed
    assert printed.count("topic3 and") == 3


@pytest.mark.usefixtures("encoder")
def test_many_queries_to_json_lines(corpus: Path, tmp_path: Path) -> None:
    queries, output = tmp_path / "queries.jsonl", tmp_path / "hits.jsonl"
    queries.write_text('{"_id": "a", "text": "topic3"}\n{"_id": "b", "text": "thing5"}\n')
    run(SearchConfig(model="m", corpus=corpus, queries=queries, top_k=4, output=output))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["query_id"], row["query"]) for row in rows] == [("a", "topic3"), ("b", "thing5")]
    for row in rows:
        assert_found([Hit(hit["id"], hit["text"], hit["score"]) for hit in row["hits"]], row["query"], 4)
        assert [hit["rank"] for hit in row["hits"]] == [1, 2, 3, 4]


@pytest.mark.usefixtures("encoder")
def test_many_queries_to_a_trec_run(corpus: Path, tmp_path: Path) -> None:
    queries, output = tmp_path / "queries.txt", tmp_path / "hits.trec"
    queries.write_text("topic3\nthing5\n")
    run(SearchConfig(model="some/model", corpus=corpus, queries=queries, top_k=4, output=output))
    lines = [line.split() for line in output.read_text().splitlines()]
    assert [line[0] for line in lines] == ["1"] * 4 + ["2"] * 4
    assert {line[2] for line in lines[:4]} == {hit.id for hit in expected("topic3", 4)}
    assert {line[5] for line in lines} == {"model"}


@pytest.mark.usefixtures("encoder")
def test_mistakes_are_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("topic3\n  \n")
    (tmp_path / "nothing.txt").write_text("")
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n')
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"query": " "}, "--query: query 1 is empty"),
        ({"queries": tmp_path / "blank.txt"}, r"blank\.txt: query 2 is empty"),
        ({"queries": tmp_path / "nothing.txt"}, "holds no query"),
        ({"queries": tmp_path / "none.txt"}, r"none\.txt"),
        ({"query": "x", "corpus": tmp_path / "none.txt"}, r"none\.txt"),
        ({"query": "x", "output": tmp_path / "hits.csv"}, r"must be a file that ends in \.jsonl"),
        ({"queries": twice, "output": tmp_path / "hits.trec"}, "share an id"),
        ({"query": "x", "corpus": twice, "output": tmp_path / "hits.trec"}, "share an id"),
    ]
    for values, message in mistakes:
        with pytest.raises(UserError, match=message):
            run(SearchConfig(**{"model": "m", "corpus": corpus, **values}))
    assert not list(tmp_path.glob("hits*"))


def test_an_index_gives_the_same_hits_and_says_what_it_finds(
    encoder: HashingEncoder, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    matrix = tmp_path / "corpus.npy"
    encode_file(encoder, corpus, matrix)
    with caplog.at_level("INFO"):
        (found,) = search_texts(encoder, ["topic3"], corpus, 4, embeddings=matrix, approximate=True)
    assert_found(found, "topic3", 4)
    assert "lists are looked at; they hold" in caplog.text


def test_what_no_index_is_of_is_refused(encoder: HashingEncoder, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--approximate needs --corpus-embeddings"):
        SearchConfig(model="m", corpus=corpus, query="q", approximate=True).check()
    matrix = tmp_path / "corpus.npy"
    encode_file(encoder, corpus, matrix, vectors="int8")
    with pytest.raises(UserError, match="these are small vectors"):
        search_texts(encoder, ["topic3"], corpus, 4, embeddings=matrix, approximate=True)
    np.save(matrix, encoder.encode_passages(CORPUS))
    matrix.with_name("corpus.npy.json").unlink()
    with pytest.raises(UserError, match="biencoder encode did not write them"):
        search_texts(encoder, ["topic3"], corpus, 4, embeddings=matrix, approximate=True)
