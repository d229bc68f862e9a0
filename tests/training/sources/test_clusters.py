"""Which rows a run puts into one batch because their queries are similar."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import WORDS, tiny_model

from biencoder import Encoder
from biencoder.config import DataSet, TrainConfig
from biencoder.data.data_sets import read_data_sets
from biencoder.data.table import ExampleTable
from biencoder.training.sources import clusters
from biencoder.training.sources.clusters import similar_rows

TOPICS, ROWS = 8, 64  # topics are words that all queries of one share


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.load(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    topic = [" ".join(WORDS[10 * i : 10 * i + 6]) for i in range(TOPICS)]
    rows = [{"query": f"{topic[i % TOPICS]} {WORDS[100 + i // 2]}", "pos": [f"answer {i}"]} for i in range(ROWS)]
    scored = [{"sentence1": f"{WORDS[i]}", "sentence2": f"{WORDS[i + 1]}", "score": 0.5} for i in range(10)]
    alone = [{"text": f"{WORDS[i]} {WORDS[i + 9]}"} for i in range(10)]
    for name, content in (("pairs", rows), ("scored", scored), ("alone", alone)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    data_sets = tuple(DataSet(path=(tmp_path / f"{name}.jsonl",)) for name in ("pairs", "scored", "alone"))
    return TrainConfig(model="model", train_data=data_sets, output_dir=tmp_path / "out", cluster_size=8)


def table_of(config: TrainConfig) -> ExampleTable:
    return read_data_sets(config.data_sets, "stop")


def test_rows_of_one_topic_are_a_cluster_and_other_kinds_of_data_have_no_places(
    encoder: Encoder, config: TrainConfig
) -> None:
    places = similar_rows(encoder, table_of(config), config)
    assert sorted(places[:ROWS].tolist()) == list(range(ROWS))
    assert (places[ROWS:] == -1).all()
    topic = (np.arange(ROWS) % TOPICS)[np.argsort(places[:ROWS])]
    assert (topic[1:] == topic[:-1]).mean() > 0.6  # at random, one in eight


def test_data_sets_without_in_batch_negatives_are_left_alone(encoder: Encoder, config: TrainConfig) -> None:
    pairs = (replace(config.data_sets[0], in_batch_negatives=False),)
    rows = [{"query": "word1 word2", "pos": ["word3"], "neg": ["word4"]}]
    pairs[0].path[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(config, train_data=pairs)
    assert similar_rows(encoder, table_of(config), config).tolist() == [-1]


def test_many_queries_are_clustered_within_parts_and_the_run_says_what_these_hold(
    encoder: Encoder, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = table_of(config)
    exact = similar_rows(encoder, table, config)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(clusters, "EXACT_UP_TO", 24)
    places = similar_rows(encoder, table, config)
    said = capsys.readouterr().out
    found = re.search(
        r"64 different queries are more than 24, .* within (\d+) parts .* hold (\d+)\.\d% of the near", said
    )
    assert found, said
    assert int(found[1]) >= 3
    assert int(found[2]) > 50
    assert sorted(places[:ROWS].tolist()) == list(range(ROWS))
    assert not np.array_equal(places, exact)
    topic = (np.arange(ROWS) % TOPICS)[np.argsort(places[:ROWS])]
    assert (topic[1:] == topic[:-1]).mean() > 0.6
