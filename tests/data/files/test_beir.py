import gzip
from pathlib import Path

import pytest
from data_files import write, write_collection, write_jsonl

from biencoder.data.files.beir import load_collection
from biencoder.errors import UserError

CORPUS = [
    {"_id": "d1", "title": "Cats", "text": "They purr."},
    {"_id": "d2", "title": "", "text": "They bark.", "metadata": {"url": "x"}},
    {"_id": "d3", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "who purrs?"}, {"_id": "q2", "text": "who barks?"}, {"_id": "q3", "text": "unjudged"}]
HEADER = "query-id\tcorpus-id\tscore\n"
JUDGED = HEADER + "q2\td2\t2\nq1\td1\t1\nq1\td2\t0\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_collection(tmp_path / "pets", CORPUS, QUERIES, test=JUDGED)


def test_a_collection(folder: Path) -> None:
    found = load_collection(folder)
    assert found.corpus_ids == ["d1", "d2", "d3"]
    assert found.corpus_texts == ["Cats They purr.", "They bark.", ""]
    assert (found.query_ids, found.query_texts) == (["q1", "q2"], ["who purrs?", "who barks?"])
    assert found.qrels == {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 2}}
    assert found.description == "pets (test): 2 queries, 3 documents"


def test_compressed_files_give_the_same(folder: Path) -> None:
    wanted = load_collection(folder)
    for path in [folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / "test.tsv"]:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert load_collection(folder, "test") == wanted
    assert load_collection(folder, "test").fingerprint == wanted.fingerprint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("corpus.jsonl", '{"_id": "d1", "text": "Cats"}\n{"_id": "d2", "text": "They bark."}\n'),
        ("queries.jsonl", '{"_id": "q1", "text": "who purred?"}\n{"_id": "q2", "text": "who barks?"}\n'),
        ("qrels/test.tsv", HEADER + "q2\td2\t1\nq1\td1\t1\nq1\td2\t0\n"),
        ("qrels/test.tsv", HEADER + "q2\td1\t2\nq1\td1\t1\nq1\td2\t0\n"),
    ],
)
def test_the_fingerprint_is_of_the_content(folder: Path, name: str, content: str) -> None:
    before = load_collection(folder).fingerprint
    (folder / name).write_text(content, encoding="utf-8")
    assert load_collection(folder).fingerprint != before


@pytest.mark.parametrize(
    "judgements",
    [
        "q2 0 d2 2\nq1 0 d1 1\nq1 Q0 d2 0\n",
        "q2\t0\td2\t2\r\nq1\t0\td1\t1\r\nq1\t0\td2\t0\r\n",
        "\ufeff" + JUDGED,
        "\n" + JUDGED.removeprefix(HEADER) + "\nq1\td1\t1\n",  # no header, blank lines, the same grade twice
    ],
)
def test_other_ways_to_write_judgements(tmp_path: Path, folder: Path, judgements: str) -> None:
    other = write_collection(tmp_path / "other", CORPUS, QUERIES, test=judgements)
    assert load_collection(other).qrels == load_collection(folder).qrels


def test_numbers_as_ids(tmp_path: Path) -> None:
    folder = write_collection(tmp_path, [{"_id": 7, "text": "d"}], [{"_id": 3, "text": "q"}], test="3\t7\t1\n")
    assert load_collection(folder).qrels == {"3": {"7": 1}}


def test_which_split(folder: Path) -> None:
    write(folder / "qrels" / "dev.tsv", HEADER + "q1\td1\t1\n")
    assert load_collection(folder).query_ids == ["q1", "q2"]
    assert load_collection(folder, "dev").query_ids == ["q1"]
    with pytest.raises(UserError, match="has no split 'tset'; it has: dev, test"):
        load_collection(folder, "tset")
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "train.tsv")
    with pytest.raises(UserError, match="holds the splits dev, train but no test"):
        load_collection(folder)
    (folder / "qrels" / "train.tsv").unlink()
    assert load_collection(folder).description == "pets (dev): 1 queries, 3 documents"


def test_folders_that_are_no_collection(folder: Path) -> None:
    with pytest.raises(UserError, match="absent does not exist or is not a folder"):
        load_collection(folder / "absent")
    with pytest.raises(UserError, match=r"corpus\.jsonl does not exist or is not a folder"):
        load_collection(folder / "corpus.jsonl")
    for path in [folder / "qrels" / "test.tsv", folder / "queries.jsonl", folder / "corpus.jsonl"]:
        path.unlink()
        wanted = "no judgements; put them in" if path.parent.name == "qrels" else f"has no {path.name}"
        with pytest.raises(UserError, match=wanted):
            load_collection(folder)


@pytest.mark.parametrize(
    ("judgements", "reason"),
    [
        (
            "q1\td1\t1\nq1\tdX\t1\nq2\tdY\t0\nq2\tdX\t1\n",
            r"names documents that are not in corpus.jsonl: 'dX' and 1 more",
        ),
        ("q9\td1\t1\n", r"names queries that are not in queries.jsonl: 'q9'$"),
        (HEADER + "q1\td1\tone\n", r"test\.tsv:2: .*integer grade.*found 'q1\\td1\\tone'"),
        ("q1\td1\t1.0\n", r"test\.tsv:1: .*integer grade"),
        (HEADER + "q1\td1\n", r"test\.tsv:2: "),
        ("q1 d1\n", r"test\.tsv:1: "),
        (HEADER + "q1\td1\t1\nq1\td1\t2\n", r"test\.tsv:3: query 'q1' and document 'd1' have two different grades"),
        (HEADER, "holds no judgements"),
        ("", "holds no judgements"),
    ],
)
def test_bad_judgements(tmp_path: Path, judgements: str, reason: str) -> None:
    folder = write_collection(tmp_path, CORPUS, QUERIES, test=judgements)
    with pytest.raises(UserError, match=reason):
        load_collection(folder)


def test_judgements_that_are_not_utf8(folder: Path) -> None:
    write(folder / "qrels" / "test.tsv", b"q1\td1\t1\nq\xff\td1\t1\n")
    with pytest.raises(UserError, match=r"test\.tsv:2: not UTF-8"):
        load_collection(folder)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"_id": "d1", "text": "again"}', "the id 'd1' appears twice"),
        (b'{"_id": "d9", "text": ', "not JSON"),
        (b'{"_id": "d9", "text": "\xff"}', r"not UTF-8 text \(byte 0xff, column 24\)"),
        (b'["d9", "text"]', "not a JSON object"),
        (b'{"id": "d9", "text": "t"}', '"_id" must be a text that is not empty; found: id, text'),
        (b'{"_id": "", "text": "t"}', '"_id" must be a text that is not empty'),
        (b'{"_id": "d9", "contents": "t"}', '"text" and "title" must be texts; found: _id, contents'),
        (b'{"_id": "d9", "text": "t", "title": 3}', '"text" and "title" must be texts'),
    ],
)
@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_bad_lines(folder: Path, name: str, line: bytes, reason: str) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"\n" + line.replace(b"d1", b"d1" if name[0] == "c" else b"q1") + b"\n")
    with pytest.raises(UserError, match=rf"{name}:5: {reason.replace('d1', 'd1' if name[0] == 'c' else 'q1')}"):
        load_collection(folder)


def test_an_empty_corpus(folder: Path) -> None:
    write_jsonl(folder / "corpus.jsonl", [])
    with pytest.raises(UserError, match=r"corpus\.jsonl holds no texts"):
        load_collection(folder)


def test_medquad(medquad: Path) -> None:
    found = load_collection(medquad / "dev-small")
    assert len(found.corpus_ids) == len(found.corpus_texts) == 3000
    assert len(found.query_ids) == len(found.qrels) <= 300
    assert found.description.startswith("dev-small (dev): ")
