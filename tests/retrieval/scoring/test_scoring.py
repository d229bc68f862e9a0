"""Teacher scores in files: whole, resumed, and by an embedding model."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_points import AtOperation
from killed import COMMAND, kill_at
from tiny import random_texts, tiny_cross_encoder, tiny_model

from biencoder import Encoder
from biencoder.cli import main
from biencoder.config import ScoreConfig
from biencoder.data.table import ExampleTable
from biencoder.errors import UserError
from biencoder.model.cross_encoder import CrossEncoder
from biencoder.retrieval.scoring import by_cross_encoder as scoring
from biencoder.retrieval.scoring.by_cross_encoder import score_file
from biencoder.retrieval.scoring.scored_rows import Scored, summarize_rows

TEXTS = random_texts(200, longest=12, seed=7)


def rows(count: int) -> list[dict[str, Any]]:
    """Ragged rows, some with scores of another teacher, some with other columns."""
    made = []
    for i in range(count):
        texts = TEXTS[i % 150 :]
        row: dict[str, Any] = {"id": i, "query": texts[0], "pos": texts[1 : 2 + i % 2], "neg": texts[3 : 3 + i % 4]}
        if i % 5 == 0:
            row |= {"neg_scores": [9.0] * len(row["neg"]), "prompt": "word7 "}
        made.append(row)
    made[1] = {"id": 1, "anchor": TEXTS[0], "positive": TEXTS[1], "negative_1": TEXTS[2], "negative_2": TEXTS[3]}
    return made


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()]


class LengthTeacher:
    """The logit counts letters; dies when it has been asked ``lives`` times."""

    def __init__(self, lives: int = 10**6, fingerprint: str = "letters") -> None:
        self.lives, self.fingerprint = lives, fingerprint
        self.asked = 0

    def score(self, pairs: Sequence[tuple[str, str]], progress: Callable[[int], None] | None = None) -> np.ndarray:
        if self.lives == 0:
            raise KeyboardInterrupt
        self.lives -= 1
        self.asked += len(pairs)
        if progress is not None:
            progress(len(pairs))
        return np.array([len(query) - 0.1 * len(passage) for query, passage in pairs], np.float32)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scoring, "WINDOW_PAIRS", 7)
    return write(tmp_path / "in.jsonl", rows(30))


def run(teacher: LengthTeacher, data: Path, output: Path, **values: Any) -> Scored:
    config = ScoreConfig(reranker="r", train_data=(data,), output=output, **values)
    return score_file(teacher, config, summarize_rows([data], "stop"))


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_scores_stand_beside_what_the_rows_hold(name: str, data: Path, tmp_path: Path) -> None:
    scored = run(LengthTeacher(), data, tmp_path / name, teacher_temperature=2.0)
    written = read(tmp_path / name)
    for before, after in zip(rows(30), written, strict=True):
        query = before.get("query") or before["anchor"]
        positives = before.get("pos") or [before["positive"]]
        negatives = before["neg"] if "neg" in before else [before["negative_1"], before["negative_2"]]
        assert {key: after[key] for key in before if key != "neg_scores"} == {
            key: value for key, value in before.items() if key != "neg_scores"
        }
        for texts, scores in ((positives, after["pos_scores"]), (negatives, after["neg_scores"])):
            assert scores == pytest.approx([(len(query) - 0.1 * len(text)) / 2 for text in texts], abs=1e-5)
    assert (scored.rows, scored.reused) == (30, 0)
    assert scored.pairs == sum(len(row["pos_scores"]) + len(row["neg_scores"]) for row in written)
    assert len(ExampleTable.from_files([tmp_path / name])) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", name]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_run_that_died_goes_on_and_ends_in_the_same_bytes(name: str, data: Path, tmp_path: Path) -> None:
    whole = run(LengthTeacher(), data, tmp_path / f"whole-{name}")
    asked = 0
    for lives in (0, 1, 3):
        teacher = LengthTeacher(lives)
        with pytest.raises(KeyboardInterrupt):
            run(teacher, data, tmp_path / name)
        assert not (tmp_path / name).exists()
        asked += teacher.asked
    with (tmp_path / f"{name}.partial").open("ab") as file:
        file.write(b'{"half a')  # what was being written when the power went
    last = LengthTeacher()
    scored = run(last, data, tmp_path / name)
    assert scored.reused == asked > 0
    assert asked + last.asked == scored.pairs == whole.pairs
    assert (tmp_path / name).read_bytes() == (tmp_path / f"whole-{name}").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("change", ["the rows", "the teacher or its settings", "the temperature"])
def test_a_part_of_another_run_is_not_taken(
    change: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(LengthTeacher(2), data, tmp_path / "out.jsonl")
    teacher, values = LengthTeacher(), {}
    if change == "the rows":
        write(data, [row | {"id": row["id"] + 1} for row in rows(30)])  # a column that training never reads
    elif change == "the temperature":
        values = {"teacher_temperature": 3.0}
    else:
        teacher.fingerprint = "other"
    scored = run(teacher, data, tmp_path / "out.jsonl", **values)
    assert scored.reused == 0
    assert f"belongs to another run ({change} differ); starting over" in caplog.text


def test_a_file_that_changes_meanwhile_is_refused(data: Path, tmp_path: Path) -> None:
    source = summarize_rows([data], "stop")
    write(data, rows(29))
    with pytest.raises(UserError, match="changed while biencoder read it"):
        score_file(LengthTeacher(), ScoreConfig(reranker="r", train_data=(data,), output=tmp_path / "o.jsonl"), source)
    assert not (tmp_path / "o.jsonl").exists()


def test_scores_of_the_wrong_length_are_said(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(data, [{"query": "a", "pos": ["b"], "neg": ["c", "d"], "neg_scores": [1.0]}])
    assert main(["score", "--reranker", "r", "--train-data", str(data), "--output", str(tmp_path / "o.jsonl")]) == 2
    assert "in.jsonl:1: neg_scores holds 1 scores for 2 texts in neg" in capsys.readouterr().err


SMALL_WINDOWS = "from biencoder.retrieval.scoring import by_cross_encoder; by_cross_encoder.WINDOW_PAIRS = 7; "


def test_the_command_killed_and_started_again(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.jsonl"
    reranker = tiny_cross_encoder(tmp_path / "reranker")
    words = ["score", "--reranker", str(reranker), "--train-data", str(data), "--output", str(output)]
    kill_at(AtOperation(4, "torn", "fsync", "out.jsonl.partial"), tmp_path, SMALL_WINDOWS + COMMAND, *words)
    done = json.loads((tmp_path / "out.jsonl.partial.state").read_text())["done"]
    assert done["pairs"] >= 4 * 7
    assert not output.exists()
    assert main(words) == 0
    assert f"continuing after {done['rows']} of 30 rows" in capsys.readouterr().err
    written = read(output)
    pairs = [
        (row.get("query") or row["anchor"], text) for row in written for text in row.get("pos") or [row["positive"]]
    ]
    scores = [score for row in written for score in row["pos_scores"]]
    np.testing.assert_allclose(scores, CrossEncoder.load(reranker).score(pairs), atol=2e-6)


def test_an_embedding_model_as_teacher(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tmp_path / "model")
    words = ["score", "--model", str(model), "--train-data", str(data), "--output", str(tmp_path / "out.jsonl")]

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # after the passages are encoded
        patch.setattr("biencoder.retrieval.scoring.by_vectors.score_table", die)
        assert main(words) == 130
    assert not (tmp_path / "out.jsonl").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "represent_passages", die)  # they are not encoded again
        assert main(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "model", "out.jsonl"]
    encoder = Encoder.load(model)
    for row in read(tmp_path / "out.jsonl"):
        (query,) = encoder.encode([row.get("prompt", "") + (row.get("query") or row["anchor"])])
        positives, negatives = row.get("pos") or [row["positive"]], row.get("neg", [])
        if "negative_1" in row:
            negatives = [row["negative_1"], row["negative_2"]]
        texts = [*positives, *negatives]
        cosines = encoder.encode(texts) @ query
        assert row["pos_scores"] + row["neg_scores"] == pytest.approx((cosines / 0.05).tolist(), abs=1e-3)
