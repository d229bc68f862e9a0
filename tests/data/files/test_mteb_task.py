import json
from pathlib import Path
from typing import Any

import pytest
from tiny import WORDS, tiny_model

from biencoder import Encoder
from biencoder.data.files.beir import load_collection
from biencoder.errors import UserError

mteb = pytest.importorskip("mteb", reason="needs pip install 'biencoder[mteb]'")

from benchmarks.mteb_parity import NAME, by_biencoder, by_mteb, register  # noqa: E402 - needs the package

ADDRESS = Path(f"mteb:{NAME}")


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """Documents with and without titles and with spaces at their ends; some queries are documents too."""

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    titles = ["", WORDS[7], " "]
    documents = [
        {"_id": f"t{i}", "title": titles[i % 3], "text": f" {WORDS[i]} {WORDS[i % 9]} word{i % 4} \n"}
        for i in range(40)
    ]
    write("corpus.jsonl", documents)
    write("queries.jsonl", [{"_id": f"t{i}", "text": f"{WORDS[i]} {WORDS[i % 9]}"} for i in range(12)])
    (tmp_path / "qrels").mkdir()
    judged = [f"t{i}\tt{(i * 7 + j) % 40}\t{1 + j}" for i in range(10) for j in range(3)]
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return tmp_path


@pytest.mark.parametrize("ignores_itself", [False, True])
def test_ndcg_is_the_figure_of_mteb(beir: Path, *, ignores_itself: bool) -> None:
    register(beir, ignores_itself=ignores_itself)
    model = str(beir / "model")
    Encoder.load(tiny_model(beir / "bare")).save(Path(model))  # with the files that tell sentence-transformers how
    theirs = by_mteb(model, 16)
    assert 0.05 < theirs < 0.95
    assert by_biencoder(model, 16) == pytest.approx(theirs, abs=1e-4)


def test_a_task_as_a_collection(beir: Path) -> None:
    register(beir)
    found = load_collection(ADDRESS)
    assert found.corpus_texts[:2] == [f"{WORDS[0]} {WORDS[0]} word0", f"{WORDS[7]}  {WORDS[1]} {WORDS[1]} word1"]
    assert found.query_ids == [f"t{i}" for i in range(10)]  # the other two have no judgements
    assert found.qrels == load_collection(beir).qrels
    assert found.description == "LocalFiles (test) of MTEB: 10 queries, 40 documents"
    register(beir, ignores_itself=True)
    assert load_collection(ADDRESS).fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("address", "split", "message"),
    [
        ("mteb:LocalFile", None, "MTEB has no such task: 'LocalFile' not found. Did you mean: 'LocalFiles'"),
        (
            "mteb:STS12",
            None,
            "mteb:STS12: is a task of the type STS on text; biencoder measures the retrieval of texts",
        ),
        ("mteb:MIRACLRetrieval", None, "has several subsets; name one of them: ar, bn"),
        ("mteb:MIRACLRetrieval:xx", None, "has no subset xx; it has: ar, bn"),
        ("mteb:LocalFiles", "dev", "has no split dev; it has: test"),
    ],
)
def test_a_task_that_cannot_be_used(beir: Path, address: str, split: str | None, message: str) -> None:
    register(beir)
    with pytest.raises(UserError, match=message):
        load_collection(Path(address), split)


def test_a_task_whose_data_cannot_be_loaded(beir: Path) -> None:
    register(beir)
    with (beir / "qrels" / "test.tsv").open("a") as file:
        file.write("t1\tnobody\t1\n")
    with pytest.raises(UserError, match=r"mteb:LocalFiles: its data cannot be loaded \(.*nobody"):
        load_collection(ADDRESS)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"mteb:SciFact needs the package mteb.*pip install biencoder\[mteb\]"):
        load_collection(Path("mteb:SciFact"))
