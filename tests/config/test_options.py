from pathlib import Path

import pytest
import yaml

from biencoder.config import DataSet, TrainConfig
from biencoder.config.values import nearest, parse_size
from biencoder.errors import UserError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1.5GB", 1_500_000_000),
        ("800MB", 800_000_000),
        ("800 mb", 800_000_000),
        ("2G", 2_000_000_000),
        ("2GiB", 2 * 1024**3),
        ("4096000", 4_096_000),
        (3_000_000, 3_000_000),
    ],
)
def test_sizes_are_decimal_unless_they_say_binary(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "1.5 apples", "-2GB", "1e9", "1,5GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a size; write it like 800MB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["2", "999KB", 0])
def test_a_size_without_its_unit_is_not_taken_for_bytes(text: str | int) -> None:
    with pytest.raises(UserError, match="less than 1 MB"):
        parse_size(text)


def test_nearest_names_only_what_is_like_it() -> None:
    assert nearest("--bath-size", ["--batch-size", "--epochs"]) == "; did you mean --batch-size?"
    assert nearest("--zzz", ["--batch-size", "--epochs"]) == ""
    assert nearest("x", [str(Path("y"))]) == ""


def test_a_shared_configuration_names_files_without_their_path(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    data = (tmp_path / "a.jsonl", Path("hf:me/pairs:train"), DataSet(path=(tmp_path / "b.csv",), query_prompt="a/b: "))
    config = TrainConfig(
        model=str(tmp_path / "base"),
        guide="BAAI/bge-small-en-v1.5",
        train_data=data,
        eval_data=Path("mteb:SciFact"),
        output_dir=tmp_path / "out",
    )
    shared = yaml.safe_load(config.to_shared_yaml())
    assert str(tmp_path) not in config.to_shared_yaml()
    assert shared["model"] == "base"
    assert shared["guide"] == "BAAI/bge-small-en-v1.5"
    *files, last = shared["train-data"]
    assert files == ["a.jsonl", "hf:me/pairs:train"]
    assert (last["path"], last["query-prompt"]) == (["b.csv"], "a/b: ")
    assert (shared["eval-data"], shared["output-dir"]) == ("mteb:SciFact", "out")
    assert shared.keys() == yaml.safe_load(config.to_yaml()).keys()
