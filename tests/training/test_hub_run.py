"""Runs that read their data from the Hub, and runs whose models go there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import TOKEN, FakeHub, Repository
from runs import small_run, write_pairs

from biencoder import Encoder
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


def downloaded(repository: Repository, folder: Path) -> Path:
    for name, content in repository.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def push_run(folder: Path, **changes: Any) -> TrainConfig:
    return small_run(folder, max_steps=2, push_to_hub="mine", **changes)


def test_the_model_and_its_card_go_to_the_hub_and_nothing_else(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = push_run(tmp_path, private=True)
    assert train(config) is not None
    assert f"The model is on the Hub: {hub.url}/ada/mine\n" in capsys.readouterr().out
    sent = hub.models["ada/mine"]
    assert sent.private
    assert sent.files.keys() >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling/config.json",
    }
    of_the_run = {path.name for path in config.output_dir.iterdir() if path.suffix in (".jsonl", ".yaml", ".html")}
    assert of_the_run == {"config.yaml", "metrics.jsonl", "report.html"}
    assert not sent.files.keys() & (of_the_run | {"run.json", "eval.json", "report.json"})
    assert not any(name.startswith(("checkpoints", "negatives")) for name in sent.files)
    assert [name for name, content in sent.files.items() if str(tmp_path).encode() in content] == []
    files = [path for path in config.output_dir.rglob("*") if path.is_file()]
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    card = sent.files["README.md"].decode()
    assert "- pairs.jsonl\n" in card
    assert "`model`, fine-tuned with" in card
    assert (config.output_dir / "README.md").read_text() == card
    texts = ["word1 word2", "word3"]
    copy = Encoder.load(downloaded(sent, tmp_path / "copy"))
    np.testing.assert_array_equal(copy.encode_queries(texts), Encoder.load(config.output_dir).encode_queries(texts))


def test_a_failed_upload_loses_nothing_and_the_same_command_sends_it_again(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = push_run(tmp_path)
    hub.broken = "/commit/"
    with pytest.raises(UserError) as raised:
        train(config)
    assert f"the model is complete in {config.output_dir}, but it could not be sent to ada/mine" in str(raised.value)
    assert f"hf upload ada/mine {config.output_dir} . --include README.md " in str(raised.value)
    assert "\n" not in str(raised.value)
    assert hub.models["ada/mine"].files == {}
    assert Encoder.load(config.output_dir).dim > 1
    hub.broken = ""
    assert train(config) is None
    assert "nothing to do\n\nThe model is on the Hub" in capsys.readouterr().out
    assert "model.safetensors" in hub.models["ada/mine"].files
    (config.output_dir / "model.safetensors").write_bytes(b"damaged")
    sent = dict(hub.models["ada/mine"].files)
    assert train(config) is None
    assert hub.models["ada/mine"].files == sent


def test_what_forbids_an_upload_stops_the_run_at_once(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = push_run(tmp_path)
    hub.models["ada/theirs"] = Repository({}, writable=False)
    hub.models["ada/public"] = Repository({})
    refused: list[tuple[str, str, dict[str, Any]]] = [
        ("", "there is no token for the Hugging Face Hub; set HF_TOKEN, or type hf auth login", {}),
        ("hf_wrong", "the Hub does not take the token", {}),
        (TOKEN, "eve/mine: ada may not write a model of this name", {"push_to_hub": "eve/mine"}),
        (TOKEN, "ada/theirs: ada may not write", {"push_to_hub": "ada/theirs"}),
        (TOKEN, "a//b: ada may not write", {"push_to_hub": "a//b"}),
        (TOKEN, "ada/public: exists and is public", {"push_to_hub": "ada/public", "private": True}),
        (TOKEN, "an adapter names its base", {"lora_rank": 2, "lora_save": "adapter"}),
    ]
    for token, message, changes in refused:
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UserError, match=message) as raised:
            train(replace(config, keep_base=0, **changes))
        assert "\n" not in str(raised.value)
    hub.close()
    with pytest.raises(UserError, match="the Hugging Face Hub cannot be reached"):
        train(config)
    assert not config.output_dir.exists()
    with pytest.raises(UserError, match="--private needs --push-to-hub"):
        replace(config, push_to_hub=None, private=True)


def test_a_dry_run_makes_no_repository(hub: FakeHub, tmp_path: Path) -> None:
    assert train(push_run(tmp_path, dry_run=True)) is None
    assert hub.models == {}
