"""Runs over data of every shape, and over unlike data sets in one run: what a person writes, to the trained model."""

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from test_torchrun import finish, start
from tiny import WORDS, tiny_model

from biencoder.cli import main
from biencoder.config import DataSet, TrainConfig
from biencoder.errors import UserError
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.objective.similarity import SimilarityObjective
from biencoder.training.progress import TrainingProgress
from biencoder.training.run import train
from biencoder.training.setup import Setup


class Texts(NamedTuple):
    """A query, what answers it, and two texts that do not."""

    query: str
    positive: str
    one: str
    other: str


Shape = Callable[[Texts], dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def write(path: Path, shape: Shape, count: int = 40) -> Path:
    path.parent.mkdir(exist_ok=True)
    texts = [Texts(f"{WORDS[i]} {WORDS[-i]}", f"{WORDS[i]} word3", WORDS[i - 60], WORDS[i - 90]) for i in range(count)]
    rows = map(shape, texts)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flag_embedding(t: Texts) -> dict[str, Any]:
    return {"query": t.query, "pos": [t.positive], "neg": [t.one, t.other], "prompt": "word7 ", "type": "retrieval",
            "pos_scores": [0.9], "neg_scores": [0.2, 0.1]}  # fmt: skip


def labelled(t: Texts) -> dict[str, Any]:
    label = zlib.crc32(t.query.encode()) % 2
    return {"query": t.query, "pos": [f"word{label}"], "neg": [f"word{1 - label}"], "type": "classification"}


def scored(t: Texts) -> dict[str, Any]:
    return {"sentence1": t.query, "sentence2": t.positive, "score": zlib.crc32(t.query.encode()) % 3 / 2}


SHAPES: dict[str, Shape] = {
    "flag.jsonl": flag_embedding,
    "flag_neg_empty.jsonl": lambda t: {"query": t.query, "pos": [t.positive], "neg": []},
    "x_no_in_batch_neg/labels.jsonl": labelled,
    "pairs.jsonl": lambda t: {"anchor": t.query, "positive": t.positive},
    "triplets.jsonl": lambda t: {"anchor": t.query, "positive": t.positive, "negative": t.one},
    "numbered.jsonl": lambda t: {"anchor": t.query, "positive": t.positive, "negative_1": t.one, "negative_2": t.other},
    "scored.jsonl": scored,
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_trains_as_it_is(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / name, SHAPES[name], 150)
    given = path.parent if "/" in name else path
    words = ["--train-data", str(given), "--output-dir", str(tmp_path / "out"), "--batch-size", "8", "--max-steps", "3"]
    words += ["--no-general-guard", "--no-cross-validate", "--learning-rate", "1e-3"]
    assert main(["train", "--model", str(model), *words]) == 0
    out = capsys.readouterr().out
    assert ("no in-batch negatives, groups of 8" in out) == ("no_in_batch_neg" in name)
    assert ("cosine towards the score" in out) == (name == "scored.jsonl")
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    assert any(not np.array_equal(before[each], after[each]) for each in after)


@pytest.fixture
def config(model: Path, tmp_path: Path) -> TrainConfig:
    """Retrieval, classification and scored sentences, each in its own way."""
    return TrainConfig(
        model=str(model),
        train_data=(
            write(tmp_path / "retrieval.jsonl", SHAPES["numbered.jsonl"]),
            DataSet(
                path=(write(tmp_path / "labels.jsonl", labelled, 20),), name="labels", in_batch_negatives=False,
                temperature=0.1, group_size=2, query_prompt="word8 word8 ", passage_prompt="word9 word9 ",
            ),
            DataSet(path=(write(tmp_path / "scored.jsonl", scored, 12),), name="scored", weight=2.0),
        ),
        output_dir=tmp_path / "out",
        eval_data=beir(tmp_path / "beir"),
        batch_size=8,
        group_size=3,
        mix="equal",
        learning_rate=1e-3,
        epochs=2,
        precision="fp32",
        save_steps=4,
        general_guard=False,
        cross_validate=False,
    )  # fmt: skip


def beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        lines = [json.dumps({"_id": word, "text": word}) + "\n" for word in WORDS[:20]]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "qrels" / "test.tsv").write_text("".join(f"{word}\t{word}\t1\n" for word in WORDS[:20]))
    return folder


def steps(folder: Path) -> list[tuple[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["data_set"], line["loss"]) for line in lines if "loss" in line]


def test_two_processes_train_three_unlike_data_sets_from_yaml_as_one_does(config: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(config.to_yaml())
    assert main(["train", "--config", str(path)]) == 0
    code, out, err = finish(start(2, ["train", "--config", str(path), "--output-dir", str(tmp_path / "two")]))
    assert code == 0, err
    one, two = steps(config.output_dir), steps(tmp_path / "two")
    # 5 + 3 + 2 batches make an epoch; shares of 1, 1 and 2 in 4 of it are 2.5, 2.5 and 5.
    retrieval = str(tmp_path / "retrieval.jsonl")
    counts = {name: [each for each, _ in one].count(name) for name in (retrieval, "labels", "scored")}
    assert counts == {retrieval: 2 * 3, "labels": 2 * 2, "scored": 2 * 5}
    assert [name for name, _ in two] == [name for name, _ in one]
    np.testing.assert_allclose([loss for _, loss in two], [loss for _, loss in one], rtol=1e-4)
    assert "rows of labels" in out
    assert "no in-batch negatives, groups of 2, temperature 0.1" in out
    written = yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())
    assert written["train-data"][1]["query-prompt"] == "word8 word8 "


def test_each_data_set_has_its_objective_prompts_and_groups(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[Setup, TrainingProgress]] = []

    def look(setup: Setup, progress: TrainingProgress, _: object) -> None:
        runs.append((setup, progress))
        raise UserError("seen")

    monkeypatch.setattr("biencoder.training.run.train_steps", look)
    with pytest.raises(UserError, match="seen"):
        train(config)
    ((setup, progress),) = runs
    plain, labels, pairs = setup.objectives
    assert plain == ContrastiveObjective(0.05, True, 1.0, two_way=True)
    assert labels == ContrastiveObjective(0.1, False, 1.0)
    assert isinstance(pairs, SimilarityObjective)
    assert [tuple(prompts) for prompts in progress.batcher.prompts] == [
        ("", ""),
        ("word8 word8 ", "word9 word9 "),
        ("", ""),
    ]
    decode = setup.encoder.tokenizer.decode
    for plan in map(progress.sampler.plan, range(setup.total_steps)):
        batch = progress.batcher(plan)
        assert batch.data_set == plan.data_set
        assert np.diff(plan.group_starts).max() == (3, 2, 1)[plan.data_set]
        texts = [decode(ids) for chunk in batch.chunks for ids in chunk.batch.input_ids.split(chunk.batch.lengths)]
        prompted = [text for text in texts if "word8 word8 " in text or "word9 word9 " in text]
        assert len(prompted) == (len(texts) if plan.data_set == 1 else 0)
        if plan.data_set == 2:
            assert batch.labels.teacher is not None
            np.testing.assert_allclose(batch.labels.teacher[:, 0], progress.batcher.table.similarities[plan.rows])


def test_other_settings_of_a_data_set_are_another_run(config: TrainConfig) -> None:
    train(replace(config, max_steps=2))
    first, labels, last = config.train_data
    assert isinstance(labels, DataSet)
    with pytest.raises(UserError, match="the settings of the data sets in --train-data have changed"):
        train(replace(config, max_steps=2, train_data=(first, replace(labels, temperature=0.2), last)))
    assert train(replace(config, max_steps=2, train_data=(first, replace(labels, name="other"), last))) is None


def test_an_unknown_key_of_a_data_set_is_refused_with_its_line(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(config.to_yaml().replace("group-size: 2", "group-sise: 2"))
    line = path.read_text().splitlines().index("  group-sise: 2") + 1
    assert main(["train", "--config", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"biencoder: error: {path}:{line}: unknown key group-sise; did you mean group-size?\n"
    )
    assert not config.output_dir.exists()
