"""``--dry-run``: it says what the run takes, leaves every file as it was, and refuses what the run would refuse."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_lines import contents, with_flag, write_rows
from runs import metrics, small_run, stop_in_step

from biencoder.cli import main
from biencoder.training.run import train

SAID = "dry run: nothing was written and nothing was trained; the same command without --dry-run"


def test_it_says_what_the_run_takes_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(place.parent)
    assert main([*with_flag("train", "--mine-negatives", "2"), "--guard-data", "beir", "--dry-run"]) == 0
    assert contents(place.parent) == before
    out = capsys.readouterr().out
    assert "evaluation: held-out" in out
    assert "10 steps in batches of 64 queries over 1 process, 10 times over the data;" in out
    assert "estimate: about" in out
    assert "2 more evaluations of about" in out
    assert "left" not in out.partition("estimate:")[2]
    assert out.splitlines()[-1] == f"{SAID} starts the run"


def test_it_leaves_a_run_that_was_stopped_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_run(tmp_path, mine_negatives=2, refresh_negatives=1)
    stop_in_step(8, config, monkeypatch)
    before = contents(config.output_dir)
    assert train(replace(config, dry_run=True)) is None
    assert contents(config.output_dir) == before
    out = capsys.readouterr().out
    assert "left; " in out.partition("estimate: about")[2]
    assert out.splitlines()[-1] == f"{SAID} continues the run from step 7"
    train(config)
    assert [line["step"] for line in metrics(config.output_dir)] == list(range(1, 15))


def test_a_finished_run_has_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_run(tmp_path, epochs=1)
    train(config)
    before = contents(config.output_dir)
    assert train(replace(config, dry_run=True)) is None
    assert contents(config.output_dir) == before
    assert "finished: nothing to do" in capsys.readouterr().out


def test_it_refuses_bad_rows(refused: Callable[..., None]) -> None:
    write_rows(Path("pairs.jsonl"), [{"query": "word1", "pos": ["word2"]}, {"query": "", "pos": ["word3"]}])
    refused(["train", *with_flag("train", "--seed", "1")[1:], "--dry-run"], "pairs.jsonl:2: query is empty")


def test_it_refuses_a_folder_with_other_things(refused: Callable[..., None]) -> None:
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("precious")
    refused([*with_flag("train", "--seed", "1"), "--dry-run"], "--output-dir", "thesis.txt")


def test_it_refuses_a_run_with_another_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_run(tmp_path)
    stop_in_step(8, config, monkeypatch)
    path = tmp_path / "run.yaml"
    path.write_text(config.to_yaml())
    assert main(["train", "--config", str(path), "--temperature", "0.1", "--dry-run"]) == 2
    assert "--temperature was 0.05 and is 0.1" in capsys.readouterr().err


def test_dry_run_is_not_a_part_of_the_configuration_of_the_run(tmp_path: Path) -> None:
    config = small_run(tmp_path, epochs=1)
    train(config)
    assert json.loads((config.output_dir / "run.json").read_text())["config"]["dry_run"] is False


def test_it_says_once_which_lengths_the_model_cuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(small_run(tmp_path, passage_max_len=100_000, dry_run=True))
    said = "--passage-max-len 100,000: the model takes at most 128 tokens of a text, and the rest is cut"
    assert capsys.readouterr().out.count(said) == 1
