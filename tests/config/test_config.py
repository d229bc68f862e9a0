import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from biencoder.config import (
    CheckConfig,
    DemoConfig,
    EncodeConfig,
    EvaluateConfig,
    ExportConfig,
    MergeConfig,
    PairsConfig,
    SearchConfig,
    TrainConfig,
)
from biencoder.config.options import Config, build, details, help_text, needed, shape
from biencoder.config.yaml_file import read_yaml
from biencoder.errors import UserError

CONFIGS: tuple[type[Config], ...] = (
    TrainConfig,
    EvaluateConfig,
    EncodeConfig,
    SearchConfig,
    CheckConfig,
    ExportConfig,
    MergeConfig,
    PairsConfig,
    DemoConfig,
)


def train_config(**values: Any) -> TrainConfig:
    return TrainConfig(**({"model": "base", "train_data": ("pairs.jsonl",), "output_dir": "out"} | values))


def test_the_defaults_are_those_of_the_contract() -> None:
    config = train_config()
    assert (config.pooling, config.normalize, config.temperature) == ("auto", None, None)
    assert (config.batch_size, config.group_size, config.query_max_len, config.passage_max_len) == (64, 8, 64, 256)
    assert (config.learning_rate, config.epochs, config.warmup_ratio, config.max_grad_norm) == (None, None, 0.1, 1.0)
    assert config.cluster_size == 16
    assert (config.precision, config.resume, config.on_bad_row, config.device) == ("auto", "auto", "stop", "auto")
    assert config.in_batch_negatives
    assert config.negatives_cross_device
    assert config.mask_false_negatives
    assert config.eval_data is None


def test_python_callers_may_give_texts_for_paths_and_one_for_many() -> None:
    config = train_config(train_data="a.jsonl", output_dir="out")
    assert config.train_data == (Path("a.jsonl"),)
    assert config.output_dir == Path("out")
    assert train_config(train_data=["a", Path("b")]).train_data == (Path("a"), Path("b"))


def test_what_was_typed_is_converted() -> None:
    config = train_config(batch_size="128", learning_rate="2e-5", memory_budget="2GB", epochs=2.0, warmup_ratio=0)
    assert config.batch_size == 128
    assert config.learning_rate == 2e-5
    assert config.memory_budget == 2_000_000_000
    assert config.epochs == 2
    assert isinstance(config.epochs, int)
    assert isinstance(config.warmup_ratio, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": -4}, "--batch-size must be at least 1, not -4"),
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"batch_size": "many"}, "--batch-size must be a whole number, not 'many'"),
        ({"batch_size": 1.5}, "--batch-size must be a whole number, not 1.5"),
        ({"batch_size": True}, "--batch-size must be a whole number, not True"),
        ({"batch_size": None}, "--batch-size is missing a value"),
        ({"group_size": 0}, "--group-size must be at least 1, not 0"),
        ({"temperature": 0}, "--temperature must be more than 0, not 0.0"),
        ({"temperature": -0.1}, "--temperature must be more than 0, not -0.1"),
        ({"temperature": "nan"}, "--temperature must be a number, not 'nan'"),
        ({"temperature": 0.6}, "--temperature 0.6 is above 0.5: cosines"),
        ({"temperature": 1, "normalize": True}, "--temperature 1 is above 0.5: cosines"),
        ({"learning_rate": 0}, "--learning-rate must be more than 0, not 0.0"),
        ({"learning_rate": "inf"}, "--learning-rate must be a number, not 'inf'"),
        ({"warmup_ratio": 1.5}, "--warmup-ratio must be at most 1, not 1.5"),
        ({"dropout": 1}, "--dropout must be less than 1, not 1.0"),
        ({"max_grad_norm": 0}, "--max-grad-norm must be more than 0, not 0.0"),
        ({"weight_decay": -1}, "--weight-decay must be at least 0, not -1.0"),
        ({"epochs": 0}, "--epochs must be at least 1, not 0"),
        ({"save_steps": 0}, "--save-steps must be at least 1, not 0"),
        ({"seed": -1}, "--seed must be at least 0, not -1"),
        ({"pooling": "men"}, "--pooling must be one of auto, cls, mean, last, not 'men'; did you mean mean?"),
        ({"precision": "fp8"}, "--precision must be one of auto, fp32, bf16, fp16, not 'fp8'"),
        ({"normalize": "yes"}, "--normalize must be true or false, not 'yes'"),
        ({"memory_budget": "2"}, "--memory-budget: '2' is less than 1 MB"),
        ({"train_data": ()}, "--train-data is missing a value"),
        ({"train_data": [5]}, "--train-data must be a path, not 5"),
        ({"output_dir": ""}, "--output-dir must be a path, not ''"),
        ({"query_prompt": 5}, "--query-prompt must be text, not 5"),
        ({"group_size": 1, "in_batch_negatives": False}, "--group-size 1 with --no-in-batch-negatives leaves no"),
        ({"group_size": 1, "batch_size": 1}, "--group-size 1 with --batch-size 1 leaves no negatives"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_flag_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        train_config(**values)
    assert str(caught.value).startswith(message)


def test_a_high_temperature_is_fine_without_normalisation() -> None:
    assert train_config(temperature=1.0, normalize=False).temperature == 1.0
    assert train_config(temperature=0.5, normalize=True).temperature == 0.5


@pytest.mark.parametrize("asked", [{}, {"query": "a", "queries": "b.txt"}])
def test_search_wants_one_source_of_queries(asked: dict[str, str]) -> None:
    with pytest.raises(UserError, match="give either --query 'TEXT' or --queries FILE"):
        SearchConfig(model="m", corpus=Path("c"), **asked)  # type: ignore[arg-type]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"^--train-data and --output-dir must be given$"):
        build(TrainConfig, {"model": "m"})


def test_configurations_cannot_be_changed_behind_their_checks() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        train_config().batch_size = 1  # type: ignore[misc]
    with pytest.raises(UserError):
        dataclasses.replace(train_config(), batch_size=-1)


def test_yaml_round_trips(tmp_path: Path) -> None:
    config = train_config(
        train_data=("a b.jsonl", "ünï.jsonl"), learning_rate=5e-5, query_prompt="query: ", passage_prompt="", epochs=3,
        normalize=False, temperature=1.0, memory_budget="1.5GB", eval_data="dev",
    )  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert build(TrainConfig, read_yaml(TrainConfig, path)) == config
    assert list(yaml.safe_load(config.to_yaml())) == [f.name.replace("_", "-") for f in dataclasses.fields(config)]


def test_yaml_keys_may_have_dashes_or_underscores(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("batch-size: 32\ngroup_size: 4\nlearning-rate: 5e-5\ntrain-data: one.jsonl\nnormalize: no\n")
    assert read_yaml(TrainConfig, path) == {
        "batch_size": 32,
        "group_size": 4,
        "learning_rate": 5e-5,  # YAML 1.1 takes it for text
        "train_data": (Path("one.jsonl"),),
        "normalize": False,
    }


def test_an_empty_yaml_file_asks_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# nothing yet\n")
    assert read_yaml(TrainConfig, path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nbath-size: 3\n", "c.yaml:2: unknown key bath-size; did you mean batch-size?"),
        ("bath_size: 3\n", "c.yaml:1: unknown key bath_size; did you mean batch-size?"),
        ("batch-size: 3\nbatch_size: 4\n", "c.yaml:2: batch-size is given a second time"),
        ("model: m\n\nbatch-size: -4\n", "c.yaml:3: --batch-size must be at least 1, not -4"),
        ("batch-size:\n", "c.yaml:1: --batch-size is missing a value"),
        ("batch-size: [1, 2]\n", "c.yaml:1: --batch-size must be a whole number, not [1, 2]"),
        ("train-data: [[a]]\nbatch-size: 3", "c.yaml:1: --train-data must be a path, not ['a']"),
        (
            "train-data: {a: 1}\nbatch-size: 3",
            "c.yaml:1: unknown key a; the keys are path, name, weight, temperature, ",
        ),
        ("train-data:\n- a\n- path: b\n  wieght: 2\n", "c.yaml:4: unknown key wieght; did you mean weight?"),
        ("train-data:\n- path: b\n  weight: 0\n", "c.yaml:3: weight must be more than 0, not 0.0"),
        ("train-data:\n- path: b\n  group-size: x\n", "c.yaml:3: group-size must be a whole number, not 'x'"),
        ("train-data:\n- path: b\n  path: c\n", "c.yaml:3: path is given a second time"),
        ("train-data:\n- name: b\n", "c.yaml:2: path must be given"),
        ("train-data:\n- path: []\n", "c.yaml:2: path is missing a value"),
        ("query-prompt: 12\n", "c.yaml:1: --query-prompt must be text, not 12"),
        ("- model\n", "c.yaml: a configuration must consist of lines of the form 'key: value'"),
        ("model: [\n", "c.yaml:2: not YAML: "),
        ("model: !!python/object:os.system x\n", "c.yaml:1: not YAML: "),
    ],
)
def test_what_is_wrong_in_a_yaml_file_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(TrainConfig, path)
    assert str(caught.value).removeprefix(str(tmp_path) + "/").startswith(message)


def test_a_missing_yaml_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config: cannot read .*nope.yaml: No such file"):
        read_yaml(TrainConfig, tmp_path / "nope.yaml")
    with pytest.raises(UserError, match=r"--config: cannot read .*: Is a directory"):
        read_yaml(TrainConfig, tmp_path)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_says_its_default(config: type[Config]) -> None:
    for field in dataclasses.fields(config):
        text = help_text(field)
        assert ("(default: " in text) == (field not in needed(config)), field.name
        assert "None" not in text, field.name
        assert "()" not in text, field.name


@pytest.mark.parametrize("config", CONFIGS)
def test_every_number_has_a_bound(config: type[Config]) -> None:
    numbers = [field for field in dataclasses.fields(config) if shape(field)[0] in (int, float)]
    for field in numbers:
        declared = details(field)
        assert declared.convert or declared.least is not None or declared.above is not None, field.name
