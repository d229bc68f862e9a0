"""The commands as a person types them, with a real model of transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fault_points import AtOperation
from killed import COMMAND, kill_at
from tiny import random_texts, tiny_model

from biencoder import Encoder, evaluate
from biencoder.cli import main
from biencoder.data.files.beir import load_collection
from biencoder.retrieval import encode
from biencoder.retrieval.comparing.comparison import compare, comparison_json

Biencoder = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def biencoder(capsys: pytest.CaptureFixture[str]) -> Biencoder:
    """Runs a command; gives its exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents and 12 queries, each the text of its relevant document, so that any encoder ranks it first."""
    folder = tmp_path_factory.mktemp("collection")
    texts = list(dict.fromkeys(random_texts(80, longest=30)))[:60]
    assert len(texts) == 60
    rows = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q{i}", "text": texts[i]} for i in range(12)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels").mkdir()
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(12))
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def test_evaluate(biencoder: Biencoder, model: str, collection: Path, tmp_path: Path) -> None:
    output, run_file = tmp_path / "eval.json", tmp_path / "run.trec"
    words = ["evaluate", "--model", model, "--data", collection, "--output", output, "--run-file", run_file]
    code, out, err = biencoder(*words)
    assert code == 0, err
    assert "12 queries, 60 documents" in out
    assert "ndcg@10" in out
    assert "1.0000" in out
    written = json.loads(output.read_text())
    assert written["metrics"] == pytest.approx(dict.fromkeys(written["metrics"], 1.0))
    assert (written["queries"], written["documents"], written["model"]) == (12, 60, model)
    assert len(run_file.read_text().splitlines()) == 12 * 60


def test_evaluate_beside_a_baseline(
    biencoder: Biencoder, model: str, collection: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Queries are turned into other words' neighbours: the two models rank them differently."""
    other = str(tiny_model(tmp_path_factory.mktemp("other"), "roberta"))
    rows = [json.loads(line) for line in (collection / "queries.jsonl").read_text().splitlines()]
    folder = tmp_path / "hard"
    shutil.copytree(collection, folder)
    cut = [{"_id": row["_id"], "text": " ".join(row["text"].split()[:2])} for row in rows]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cut))
    output = tmp_path / "eval.json"
    words = ["evaluate", "--model", model, "--baseline", other, "--data", folder, "--output", output]
    code, out, err = biencoder(*words)
    assert code == 0, err
    written = json.loads(output.read_text())
    found = load_collection(folder)
    first, second = (evaluate(Encoder.load(path), found) for path in (other, model))
    assert written["metrics"] == second.metrics
    assert (written["baseline"]["model"], written["baseline"]["metrics"]) == (other, first.metrics)
    assert first.metrics != second.metrics
    assert written["comparison"] == comparison_json(compare(first, second))
    assert written["significance"]["correction"].startswith("none")
    (line,) = (line.split() for line in out.splitlines() if line.startswith("ndcg@10"))
    deciding = written["comparison"][0]
    shown = [f"{deciding[name]:.4f}" for name in ("before", "after")]
    assert line[1:3] == shown
    assert line[-1] == f"{deciding['p']:.4f}"
    assert "Nothing corrects for testing several measures" in out


def test_a_model_does_not_differ_from_itself(biencoder: Biencoder, model: str, collection: Path) -> None:
    code, out, err = biencoder("evaluate", "--model", model, "--baseline", model, "--data", collection)
    assert code == 0, err
    assert "No significant change in ndcg@10 (p = 1.000)" in out


def test_encode_and_search(biencoder: Biencoder, model: str, collection: Path, tmp_path: Path) -> None:
    corpus, matrix, hits = collection / "corpus.jsonl", tmp_path / "corpus.npy", tmp_path / "hits.jsonl"
    code, out, err = biencoder("encode", "--model", model, "--input", corpus, "--output", matrix)
    assert code == 0, err
    assert "60 vectors of 32 dimensions" in out
    vectors = np.load(matrix)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    words = ["search", "--model", model, "--corpus", corpus, "--corpus-embeddings", matrix, "--top-k", 3]
    code, _, err = biencoder(*words, "--queries", collection / "queries.jsonl", "--output", hits)
    assert code == 0, err
    rows = [json.loads(line) for line in hits.read_text().splitlines()]
    assert [row["hits"][0]["id"] for row in rows] == [f"d{i}" for i in range(12)]
    assert rows[0]["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    code, out, err = biencoder(*words[:5], "--top-k", 3, "--query", rows[5]["query"])
    assert code == 0, err
    assert out.index("d5") > 0
    code, _, err = biencoder(*words, "--query", "word1", "--max-length", 8)
    assert code == 2
    assert "made with another model or other settings" in err


SMALL_CHUNKS = "from biencoder.retrieval import encode; encode.CHUNK = 32; "


def test_encode_killed_and_started_again(
    biencoder: Biencoder, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "CHUNK", 32)
    texts, output = tmp_path / "texts.txt", tmp_path / "out.npy"
    texts.write_text("\n".join(random_texts(300)))
    command = ["encode", "--model", model, "--input", str(texts), "--output"]
    fault = AtOperation(2, "torn", "fsync", "out.npy.partial")
    kill_at(fault, tmp_path, SMALL_CHUNKS + COMMAND, *command, output)
    assert not output.exists()
    code, _, err = biencoder(*command, output)
    assert code == 0
    assert "continuing after 64 of 300 texts" in err
    assert biencoder(*command, tmp_path / "whole.npy")[0] == 0
    # The killed process and this one may use other numbers of threads.
    np.testing.assert_allclose(np.load(output), np.load(tmp_path / "whole.npy"), atol=1e-6)
    assert "already complete" in biencoder(*command, output)[2]


def test_mistakes_exit_with_2_and_one_line(biencoder: Biencoder, model: str, collection: Path, tmp_path: Path) -> None:
    mistakes: list[tuple[list[object], str]] = [
        (["evaluate", "--model", model, "--data", tmp_path], "has no corpus.jsonl"),
        (["evaluate", "--model", tmp_path, "--data", collection], "no model in this folder"),
        (["encode", "--model", model, "--input", tmp_path / "no.txt", "--output", tmp_path / "x.npy"], "no.txt"),
        (["search", "--model", model, "--corpus", tmp_path / "no.txt", "--query", "x"], "no.txt"),
    ]
    for words, message in mistakes:
        code, out, err = biencoder(*words)
        assert (code, out) == (2, "")
        assert err.startswith("biencoder: error: ")
        assert message in err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
