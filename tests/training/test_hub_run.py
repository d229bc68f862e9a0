"""Runs that read their data from the Hub, and runs whose models go there."""

from dataclasses import replace
from pathlib import Path

import pytest
from fake_hub import FakeHub, Repository
from runs import small_run, write_pairs

from biencoder.config import DataSet, TrainConfig
from biencoder.data.files.hub_copy import local_copy, pinned
from biencoder.errors import UserError
from biencoder.training.run import train

ADDRESS = Path("hf:org/pairs")


def put_pairs(hub: FakeHub, folder: Path, rows: int = 60) -> None:
    lines = write_pairs(folder / "pairs.jsonl").read_bytes().splitlines(keepends=True)
    hub.data_sets["org/pairs"] = Repository({"train.jsonl": b"".join(lines[:rows])})


def run_on_hub(folder: Path) -> TrainConfig:
    data = (DataSet(path=(ADDRESS,), temperature=0.1),)
    return small_run(folder, train_data=data, max_steps=2, precision="fp32")


def test_a_run_goes_on_without_the_hub_and_notices_other_data_there(hub: FakeHub, tmp_path: Path) -> None:
    put_pairs(hub, tmp_path)
    config = run_on_hub(tmp_path)
    assert train(config) is not None
    began_with = pinned(ADDRESS)
    put_pairs(hub, tmp_path, rows=50)
    local_copy.cache_clear()
    with pytest.raises(UserError, match=f"the training data have changed; .*--train-data held {began_with}. To resume"):
        train(config)
    hub.close()
    assert train(replace(config, train_data=(DataSet(path=(Path(began_with),), temperature=0.1),))) is None  # finished
