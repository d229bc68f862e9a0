"""Retrieval by a vector for each token: search, evaluation, mining, scoring and stored vectors agree with loops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mining import mined_rows
from numpy.typing import NDArray
from tiny import random_texts, tiny_model

from biencoder import Encoder
from biencoder.commands.data import score as score_command
from biencoder.commands.encode import run as run_encode
from biencoder.config import EncodeConfig, ScoreConfig
from biencoder.data.files.beir import Collection
from biencoder.errors import UserError
from biencoder.model.new_heads.multi_vector import make_multi_vector
from biencoder.model.representations.ragged import TokenVectors
from biencoder.retrieval import encode, search
from biencoder.retrieval.encode import description, encode_file
from biencoder.retrieval.evaluate import WHOLE, evaluate, retrieve
from biencoder.retrieval.search import score_pairs
from biencoder.retrieval.search_texts import search_texts
from biencoder.retrieval.vectors.stored import lengths_of, open_vectors

PASSAGES = random_texts(60, longest=20, seed=2)
QUERIES = [" ".join(text.split()[:3]) for text in PASSAGES[:12]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    encoder = Encoder.load(tiny_model(folder / "base"))
    make_multi_vector(encoder, 16, PASSAGES, skip_punctuation=True)
    encoder.save(folder / "model")
    (folder / "passages.txt").write_text("\n".join(PASSAGES) + "\n")
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(folder / "model")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, encoder: Encoder) -> None:
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * encoder.text_size * 7)
    monkeypatch.setattr(search, "PAIRS_AT_ONCE", 5)
    monkeypatch.setattr(search, "TEXTS_AT_ONCE", 5)
    monkeypatch.setattr(encode, "CHUNK", 8)


def by_definition(encoder: Encoder, queries: list[str] = QUERIES) -> NDArray[np.float32]:
    """The mean, over the vectors of the query, of the best match among those of the passage: ``[Q, P]``."""
    asked, found = encoder.represent_queries(queries), encoder.represent_passages(PASSAGES)
    assert isinstance(asked, TokenVectors)
    assert isinstance(found, TokenVectors)
    return np.array(
        [
            [(asked[q : q + 1].vectors @ found[p : p + 1].vectors.T).max(axis=1).mean() for p in range(len(found))]
            for q in range(len(asked))
        ],
        np.float32,
    )


def test_search_finds_what_a_loop_finds(encoder: Encoder) -> None:
    asked, found = encoder.represent_queries(QUERIES), encoder.represent_passages(PASSAGES)
    scores, indices = search.search(asked, found, 9)
    wanted = by_definition(encoder)
    np.testing.assert_allclose(scores, -np.sort(-wanted, axis=1)[:, :9], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(wanted, indices, axis=1), scores, atol=1e-6)
    pairs = score_pairs(asked, found[np.arange(len(QUERIES))])
    np.testing.assert_allclose(pairs, wanted[:, : len(QUERIES)].diagonal(), atol=1e-6)
    assert isinstance(asked, TokenVectors)
    assert isinstance(found, TokenVectors)
    np.testing.assert_allclose(asked.scores(found), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="must be matrices of the same kind and width"):
        search.search(encoder.encode_queries(QUERIES), found, 9)


def test_evaluation_and_its_findings(encoder: Encoder) -> None:
    collection = Collection(
        corpus_ids=[f"d{i}" for i in range(len(PASSAGES))],
        corpus_texts=PASSAGES,
        query_ids=[f"q{i}" for i in range(len(QUERIES))],
        query_texts=QUERIES,
        qrels={f"q{i}": {f"d{i}": 1, f"d{i + 20}": 1} for i in range(len(QUERIES))},
        description="random words",
    )
    wanted = by_definition(encoder)
    run = retrieve(encoder, collection, k=100)[WHOLE]
    for i, query in enumerate(collection.query_ids):
        assert run[query] == pytest.approx(dict(zip(collection.corpus_ids, wanted[i].tolist(), strict=True)), abs=1e-6)
    evaluation = evaluate(encoder, collection, dims=(8,), with_findings=True)
    assert evaluation.findings is not None
    best = [max(wanted[i, i], wanted[i, i + 20]) for i in range(len(QUERIES))]
    assert list(evaluation.findings.positive.values()) == pytest.approx(best, abs=1e-4)
    assert 0 < evaluation.metrics["ndcg@10, 8 dimensions"] <= 1
    assert evaluation.metrics["ndcg@10, 8 dimensions"] != evaluation.metrics["ndcg@10"]


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_stored_vectors_are_searched_from_the_disk(encoder: Encoder, folder: Path, tmp_path: Path, kind: str) -> None:
    corpus, output = folder / "passages.txt", tmp_path / "out.npy"
    made = encode_file(encoder, corpus, output, vectors=kind)
    assert (made.rows, made.dim) == (60, 16)
    stored = open_vectors(output, like=encoder.no_texts)
    assert isinstance(stored, TokenVectors)
    assert isinstance(stored.vectors, np.memmap)
    assert stored.vectors.dtype == kind
    direct = encoder.represent_passages(PASSAGES)
    assert isinstance(direct, TokenVectors)
    assert np.array_equal(stored.starts, direct.starts)
    np.testing.assert_allclose(stored.vectors, direct.vectors, atol=1e-6 if kind == "float32" else 1e-3)
    now = search_texts(encoder, QUERIES, corpus, 5)
    later = search_texts(encoder, QUERIES, corpus, 5, embeddings=output)
    for hits, again in zip(now, later, strict=True):
        assert [hit.text for hit in hits] == [hit.text for hit in again]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in again], abs=1e-3)
    assert encode_file(encoder, corpus, output, vectors=kind).reused == 60
    assert {path.name for path in tmp_path.iterdir()} == {"out.npy", "out.npy.json", "out.npy.lengths.npy"}
    dense = Encoder.load(folder / "base")
    with pytest.raises(UserError, match=r"was made with another model|of 16 dimensions"):
        search_texts(dense, QUERIES, corpus, 5, embeddings=output)
    encode_file(dense, corpus, output)
    assert not lengths_of(output).exists()
    with pytest.raises(UserError, match="encode the corpus again"):
        search_texts(encoder, QUERIES, corpus, 5, embeddings=output)


class StoppedError(Exception):
    """Stands for a kill."""


def test_a_stopped_encode_continues_and_makes_the_same_files(
    encoder: Encoder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = folder / "passages.txt"
    encode_file(encoder, corpus, tmp_path / "whole.npy")
    represent, calls = encoder.represent_passages, iter(range(100))

    def stopping(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 3:
            raise StoppedError
        return represent(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(encoder, "represent_passages", stopping)
        with pytest.raises(StoppedError):
            encode_file(encoder, corpus, tmp_path / "out.npy")
    with (tmp_path / "out.npy.partial.lengths").open("ab") as file:
        file.write(b"torn")  # a kill between the lengths and the record
    made = encode_file(encoder, corpus, tmp_path / "out.npy")
    assert made.reused == 24
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert lengths_of(tmp_path / "out.npy").read_bytes() == lengths_of(tmp_path / "whole.npy").read_bytes()
    assert description(tmp_path / "out.npy") == description(tmp_path / "whole.npy")
    assert not list(tmp_path.glob("out*partial*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors": "int8"}, "--vectors int8: the model's head is multi, and is stored as float32 or float16"),
        ({"output": "out.parquet"}, r"must be a file that ends in \.npy \(the model's head is multi\)"),
    ],
)
def test_other_forms_are_refused(folder: Path, tmp_path: Path, options: dict[str, str], message: str) -> None:
    output = tmp_path / options.get("output", "out.npy")
    config = EncodeConfig(
        model=str(folder / "model"),
        input=folder / "passages.txt",
        output=output,
        vectors=options.get("vectors", "float32"),
    )
    with pytest.raises(UserError, match=message):
        run_encode(config)
    assert not list(tmp_path.iterdir())


def test_lengths_that_do_not_fit_are_refused(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    encode_file(encoder, folder / "passages.txt", output)
    np.save(lengths_of(output), np.ones(60, np.int32))
    with pytest.raises(UserError, match="does not count the vectors of"):
        search_texts(encoder, QUERIES, folder / "passages.txt", 5, embeddings=output)
    lengths_of(output).unlink()
    with pytest.raises(UserError, match=r"lengths\.npy: cannot be read as a \.npy file"):
        search_texts(encoder, QUERIES, folder / "passages.txt", 5, embeddings=output)


def test_mined_negatives_and_scores_are_those_of_a_loop(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"query": query, "pos": [PASSAGES[i]]} for i, query in enumerate(QUERIES)]
    rows[3]["prompt"] = "word5 word6 "
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mined = mined_rows(folder / "model", folder / "passages.txt", tmp_path)
    asked = [f"{row.get('prompt', '')}{row['query']}" for row in rows]
    wanted = by_definition(encoder, asked)
    for i, row in enumerate(mined):
        allowed = [j for j in np.argsort(-wanted[i], kind="stable") if j != i and wanted[i, j] < wanted[i, i]]
        assert row["neg"] == [PASSAGES[j] for j in allowed[:2]]
    score_command.run(
        ScoreConfig(
            model=str(folder / "model"),
            train_data=(tmp_path / "mined.jsonl",),
            output=tmp_path / "scored.jsonl",
            teacher_temperature=1.0,
        )
    )
    for i, line in enumerate((tmp_path / "scored.jsonl").read_text().splitlines()):
        row = json.loads(line)
        assert row["pos_scores"] == pytest.approx([wanted[i, i]], abs=1e-5)
        assert row["neg_scores"] == pytest.approx([wanted[i, PASSAGES.index(text)] for text in row["neg"]], abs=1e-5)
    assert not list(tmp_path.glob(".scored*"))


def test_the_nearest_vectors_of_a_passage_are_merged(encoder: Encoder, folder: Path) -> None:
    whole = encoder.represent_passages(PASSAGES)
    assert isinstance(whole, TokenVectors)
    pooling = Encoder.load(folder / "model", pool_tokens=3)
    assert pooling.fingerprint != encoder.fingerprint
    pooled = pooling.represent_passages(PASSAGES)
    assert isinstance(pooled, TokenVectors)
    assert np.array_equal(np.diff(pooled.starts), -(-np.diff(whole.starts) // 3))
    np.testing.assert_allclose(np.linalg.norm(pooled.vectors, axis=1), 1, atol=1e-5)
    queries, same = encoder.represent_queries(QUERIES), pooling.represent_queries(QUERIES)
    assert isinstance(queries, TokenVectors)
    assert isinstance(same, TokenVectors)
    assert np.array_equal(queries.vectors, same.vectors)  # queries keep all of theirs
    for number in range(5):
        groups = [[vector] for vector in whole[number : number + 1].vectors]
        while len(groups) > -(-len(whole[number : number + 1].vectors) // 3):
            means = [np.sum(group, axis=0) / np.linalg.norm(np.sum(group, axis=0)) for group in groups]
            pairs = [(float(means[i] @ means[j]), i, j) for i in range(len(means)) for j in range(i + 1, len(means))]
            _, i, j = max(pairs, key=lambda pair: pair[0])
            groups[i] += groups.pop(j)
        wanted = [np.sum(group, axis=0) / np.linalg.norm(np.sum(group, axis=0)) for group in groups]
        np.testing.assert_allclose(pooled[number : number + 1].vectors, wanted, atol=1e-5)
    assert np.array_equal(whole.pooled(1).vectors, whole.vectors)
    twins = TokenVectors(np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32), np.array([0, 4]))
    assert twins.pooled(2).vectors.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(UserError, match=r"--pool-tokens 2: .* has no vector for each token"):
        Encoder.load(folder / "base", pool_tokens=2)


def test_nothing_to_represent(encoder: Encoder) -> None:
    assert len(encoder.represent_queries([])) == 0
    assert isinstance(encoder.represent_queries([]), TokenVectors)
    with torch.no_grad():
        assert encoder.nothing().vectors.shape == (0, 16)
