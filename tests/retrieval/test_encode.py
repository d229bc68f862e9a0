import json
import logging
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fault_points import Armed, AtCall, AtOperation
from hashing_encoder import HashingEncoder
from killed import kill_at

from biencoder.errors import UserError
from biencoder.retrieval import encode
from biencoder.retrieval.encode import Encoded, description, encode_file
from biencoder.retrieval.text_encoder import Advance

TEXTS = [f"text number {i} of {i % 7} kinds" for i in range(50)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "CHUNK", 8)
    monkeypatch.setattr(logging.getLogger("biencoder"), "propagate", True)  # the command line turns it off


class StoppedError(Exception):
    """Stands for a kill."""


class StoppingEncoder(HashingEncoder):
    """Stops in the chunk that would go beyond 30 texts."""

    def encode(self, texts: Sequence[str], prompt: str = "", progress: Advance | None = None) -> np.ndarray:
        if self.texts_seen + len(texts) > 30:
            raise StoppedError
        return super().encode(texts, prompt, progress)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"texts.txt"}


def interrupt(texts: Path, output: Path) -> None:
    with pytest.raises(StoppedError):
        encode_file(StoppingEncoder(), texts, output)
    assert files(output.parent) == {"out.npy.partial", "out.npy.partial.json"}


@pytest.mark.parametrize("kind", ["query", "passage", "plain"])
def test_rows_come_in_order_under_the_prompt_of_their_kind(texts: Path, tmp_path: Path, kind: str) -> None:
    encoder = HashingEncoder(query_prompt="question ", passage_prompt="document ")
    made = encode_file(encoder, texts, tmp_path / "new" / "out.npy", kind=kind)
    assert made == Encoded(tmp_path / "new" / "out.npy", rows=50, dim=64, reused=0)
    expected = encoder.encode(TEXTS, {"query": "question ", "passage": "document ", "plain": ""}[kind])
    matrix = np.load(made.output, mmap_mode="r")
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, expected)
    assert files(tmp_path / "new") == {"out.npy", "out.npy.json"}


def test_empty_lines_keep_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("\none\n\n")
    encode_file(HashingEncoder(), path, tmp_path / "out.npy")
    matrix = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(matrix, HashingEncoder().encode(["", "one", ""]))


def test_an_interrupted_run_goes_on(texts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encode_file(HashingEncoder(), texts, tmp_path / "whole.npy")
    folder = tmp_path / "folder"
    interrupt(texts, folder / "out.npy")
    encoder = HashingEncoder()
    started: list[tuple[int, int]] = []
    seen: list[int] = []

    def progress(total: int, done: int) -> Advance:
        started.append((total, done))
        return seen.append

    with caplog.at_level(logging.INFO):
        made = encode_file(encoder, texts, folder / "out.npy", progress=progress)
    assert made.reused == 24
    assert encoder.texts_seen == 26
    assert started == [(50, 24)]
    assert seen == list(range(25, 51))
    assert "continuing after 24 of 50 texts" in caplog.text
    assert (folder / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert files(folder) == {"out.npy", "out.npy.json"}


@pytest.mark.parametrize("change", ["texts", "model", "kind"])
def test_a_run_of_something_else_starts_over_and_says_so(
    texts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    output = tmp_path / "folder" / "out.npy"
    interrupt(texts, output)
    if change == "texts":
        texts.write_text("\n".join(reversed(TEXTS)) + "\n")
    encoder = HashingEncoder(passage_prompt="new " if change == "model" else "")
    made = encode_file(encoder, texts, output, kind="plain" if change == "kind" else "passage")
    assert made.reused == 0
    assert encoder.texts_seen == 50
    assert "starting over" in caplog.text
    assert {"texts": "the texts", "model": "the model", "kind": "the kind"}[change] in caplog.text
    expected = encoder.encode(TEXTS[::-1] if change == "texts" else TEXTS, "new " if change == "model" else "")
    np.testing.assert_array_equal(np.load(output), expected)


def test_rows_that_the_record_claims_but_the_file_lacks_are_not_trusted(texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "folder" / "out.npy"
    interrupt(texts, output)
    partial = output.with_name("out.npy.partial")
    partial.write_bytes(partial.read_bytes()[:-1])
    assert encode_file(HashingEncoder(), texts, output).reused == 0
    np.testing.assert_array_equal(np.load(output), HashingEncoder().encode(TEXTS))


def test_a_record_is_never_taken_for_the_rows_of_another_run(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "folder" / "out.npy"
    interrupt(texts, output)  # 24 rows and their record

    def stop(*_: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:  # another model, stopped when 24 rows of it are written and not recorded
        patch.setattr(encode, "CHUNK", 24)
        patch.setattr(encode, "write_json", stop)
        with pytest.raises(StoppedError):
            encode_file(HashingEncoder(passage_prompt="new "), texts, output)
    encode_file(HashingEncoder(), texts, output)
    np.testing.assert_array_equal(np.load(output), HashingEncoder().encode(TEXTS))


def test_rows_written_after_the_last_record_are_written_again(texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "folder" / "out.npy"
    interrupt(texts, output)
    with output.with_name("out.npy.partial").open("ab") as file:
        file.write(b"half a row")
    assert encode_file(HashingEncoder(), texts, output).reused == 24
    np.testing.assert_array_equal(np.load(output), HashingEncoder().encode(TEXTS))


def test_a_whole_file_is_not_made_again_unless_something_changed(texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    encode_file(HashingEncoder(), texts, output)
    again = HashingEncoder()
    assert encode_file(again, texts, output).reused == 50
    assert again.texts_seen == 0
    other = HashingEncoder(dim=32)
    assert encode_file(other, texts, output).reused == 0
    assert np.load(output).shape == (50, 32)
    made_from = description(output)
    assert made_from is not None
    assert made_from["model"] == other.fingerprint


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "CHUNK", 128)
    path = tmp_path / "many.txt"
    path.write_text("\n".join(f"number {i}" for i in range(8_000)))
    encoder = HashingEncoder(dim=512)  # the whole matrix is 16 MB
    tracemalloc.start()
    encode_file(encoder, path, tmp_path / "out.npy")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.load(tmp_path / "out.npy", mmap_mode="r").shape == (8_000, 512)
    assert peak < 2_000_000


def test_bad_outputs_and_inputs_are_refused_before_anything_is_written(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be a file that ends in \.npy"):
        encode_file(HashingEncoder(), texts, texts)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"txt": "not"}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:2: needs `text`"):
        encode_file(HashingEncoder(), bad, tmp_path / "folder" / "out.npy")
    assert not (tmp_path / "folder").exists()
    assert texts.read_text().startswith(TEXTS[0])


def test_vectors_that_are_not_finite_are_refused(texts: Path, tmp_path: Path) -> None:
    class Diverged(HashingEncoder):
        def encode(self, texts: Sequence[str], prompt: str = "", progress: Advance | None = None) -> np.ndarray:
            vectors = super().encode(texts, prompt, progress)
            vectors[[text.startswith("text number 20 ") for text in texts], 3] = np.nan
            return vectors

    with pytest.raises(UserError, match=r"text 21: .* not finite"):
        encode_file(Diverged(), texts, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_too_little_disk_space_is_said_first(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="disk space"):
        encode_file(HashingEncoder(), texts, tmp_path / "out.npy")


@pytest.mark.parametrize("is_described", [False, True])
def test_killed_while_it_is_published_it_only_finishes_that(tmp_path: Path, is_described: bool) -> None:
    texts, output = tmp_path / "in.txt", tmp_path / "out.npy"
    texts.write_text("one\ntwo\n")
    encode_file(HashingEncoder(), texts, output)
    before = output.read_bytes(), output.stat().st_ino
    source = tmp_path / "out.npy.json"
    record = json.dumps({"rows_done": 2, "source": json.loads(source.read_text())})
    (tmp_path / "out.npy.partial.json").write_text(record)
    if not is_described:
        source.unlink()
    assert encode_file(HashingEncoder(), texts, output).reused == 2
    assert (output.read_bytes(), output.stat().st_ino) == before
    assert {path.name for path in tmp_path.glob("out*")} == {"out.npy", "out.npy.json"}


ENCODE = """
from hashing_encoder import HashingEncoder
from biencoder.retrieval import encode
encode.CHUNK = 8
encode.encode_file(HashingEncoder(), Path(sys.argv[1]), Path(sys.argv[2]))
"""
ROWS, RECORD = "out.npy.partial", ".out.npy.partial.json.*.tmp"
# One run after the other is killed here, and leaves a record of so many rows; each writes a chunk of 8 at a time.
KILLS: list[tuple[Armed, int]] = [
    (AtOperation(0, "kill", "create or write", ROWS), 0),
    (AtCall("biencoder.retrieval.encode", "finite", 0), 0),  # between computing a chunk and writing it
    (AtOperation(0, "torn", "fsync", ROWS), 0),
    (AtOperation(0, "kill", "create or write", RECORD), 0),
    (AtOperation(0, "torn", "fsync", RECORD), 0),
    (AtOperation(0, "kill", "fsync", RECORD), 0),
    (AtOperation(0, "kill", "rename", RECORD), 0),
    (AtCall("biencoder.retrieval.encode", "finite", 1), 8),
    (AtOperation(1, "torn", "fsync", ROWS), 16),
    (AtOperation(2, "kill", "fsync", ROWS), 32),
    (AtOperation(1, "kill", "create or write", RECORD), 40),
    (AtOperation(2, "torn", "fsync", RECORD), 56),
    (AtOperation(1, "kill", "rename", RECORD), 64),
    (AtOperation(0, "kill", "fsync of a folder", ""), 72),
    (AtCall("biencoder.retrieval.encode", "finite", 3), 96),
    (AtOperation(4, "torn", "fsync", ROWS), 128),
    (AtOperation(0, "kill", "rename", ROWS), 150),
    (AtOperation(0, "kill", "rename", ".out.npy.json.*.tmp"), 150),
    (AtOperation(0, "kill", "remove", "out.npy.partial.json"), 150),
]


def test_killed_anywhere_and_started_again_gives_the_same_bytes(tmp_path: Path) -> None:
    texts, output = tmp_path / "in.txt", tmp_path / "out.npy"
    texts.write_text("\n".join(f"line {i} of the file" for i in range(150)))
    encode_file(HashingEncoder(), texts, tmp_path / "whole.npy")
    record = tmp_path / "out.npy.partial.json"
    for fault, rows_done in KILLS:
        kill_at(fault, tmp_path, ENCODE, texts, output)
        assert (json.loads(record.read_text())["rows_done"] if record.exists() else 0) == rows_done, fault
    encode_file(HashingEncoder(), texts, output)
    assert output.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert {path.name for path in tmp_path.glob("out*")} == {"out.npy", "out.npy.json"}
