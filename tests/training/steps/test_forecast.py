"""The line that says how long a run takes: said once, and true where the speed does not change."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import small_run, stop_in_step
from tiny import WORDS

from biencoder.config import TrainConfig
from biencoder.data.data_sets import read_data_sets
from biencoder.training.preparation import evaluation_data, prepare_encoder, set_up
from biencoder.training.progress import Spent, TrainingProgress
from biencoder.training.run import train
from biencoder.training.setup import Setup
from biencoder.training.steps.forecast import FEWEST, WARM_UP, Forecast, evaluations_left, spread


def prepared(config: TrainConfig) -> tuple[Setup, TrainingProgress]:
    encoder, config = prepare_encoder(config, 100)
    return set_up(
        config, encoder, *evaluation_data(config, encoder, read_data_sets(config.data_sets, config.on_bad_row))
    )


def write_beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        (folder / f"{name}.jsonl").write_text(
            "".join(f'{{"_id": "{word}", "text": "{word}"}}\n' for word in WORDS[:50])
        )
    (folder / "qrels" / "test.tsv").write_text("".join(f"{word}\t{word}\t1\n" for word in WORDS[:50]))
    return folder


def estimates(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("estimate: ")]


def test_a_run_says_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(small_run(tmp_path, eval_steps=4))
    (said,) = estimates(capsys.readouterr().out)
    form = r"estimate: about \d+ s in all, \d+ s of it left; \d+% of it for evaluations "
    assert re.match(form + r"\(3 more evaluations of about \d+ s\); memory: \d\.\d\d GB so far", said), said


def test_a_run_that_may_look_again_says_what_that_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(small_run(tmp_path, cross_validate=True, keep_base=0.0))
    said, *of_parts = estimates(capsys.readouterr().out)
    form = r"; about (\d+ min )?\d+ s more if the evaluation cannot tell; memory"
    assert re.search(form, said), said
    assert not any(re.search(form, each) for each in of_parts)


def test_a_run_of_few_steps_does_not_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(small_run(tmp_path, epochs=1))
    assert estimates(capsys.readouterr().out) == []


def test_a_resumed_run_says_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_run(tmp_path, epochs=3, guard_data=(write_beir(tmp_path / "beir"),))
    stop_in_step(8, config, monkeypatch)
    capsys.readouterr()
    train(config)
    (said,) = estimates(capsys.readouterr().out)
    assert re.match(r"estimate: about \d+ s left; \d+% of it for evaluations \(3 more ", said), said
    assert " 0% of it" not in said  # what an evaluation takes is known from the part of the run that is over


def test_choosing_how_much_of_the_base_to_keep_takes_time(tmp_path: Path) -> None:
    config = small_run(tmp_path, guard_data=(write_beir(tmp_path / "beir"),))
    setup, progress = prepared(config)
    fixed, _ = prepared(replace(config, keep_base=0.0))
    assert evaluations_left(setup, progress) == evaluations_left(fixed, progress) + 1
    progress.spent.guards = 60.0
    said = [Forecast(each, progress).said(None) for each in (setup, fixed)]
    assert "about 4 min 00 s left" in said[0]
    assert "about 1 min 00 s left" in said[1]


@pytest.mark.parametrize("changes", [{}, {"eval_steps": 4}, {"eval_steps": 100}, {"max_steps": 9}, {"keep_base": 0.5}])
def test_it_counts_the_evaluations_that_come(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = small_run(tmp_path, **changes)
    setup, progress = prepared(config)
    expected = evaluations_left(setup, progress)
    train(config)
    lines = [json.loads(line) for line in (config.output_dir / "metrics.jsonl").read_text().splitlines()]
    after_the_first = [line for line in lines if "evaluation" in line][1:]
    assert expected == len(after_the_first) + (config.keep_base == 0.5)
    assert all(line["seconds"] > 0 for line in after_the_first)


def test_at_an_even_speed_the_time_of_the_steps_is_exact(tmp_path: Path) -> None:
    """Passages of very different lengths: the steps that are measured say little about the others."""
    config = small_run(tmp_path, cluster_size=1)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["pos"] = [" ".join(["word1"] * (2 + number % 25)) + f" word{number}"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    setup, progress = prepared(config)
    forecast = Forecast(setup, progress)
    tokens = [progress.batcher(progress.sampler.plan(step)).tokens for step in range(setup.total_steps)]
    seconds = 0.5  # a token
    for count in tokens[: WARM_UP + FEWEST]:
        forecast.measure(count, seconds * count)
    progress.step = WARM_UP + FEWEST
    left = setup.total_steps - progress.step
    expected = left * seconds * sum(tokens) / len(tokens)
    assert forecast._training() == pytest.approx(expected)
    progress.spent = Spent(evaluation=60.0)
    minutes, rest = divmod(round(expected + 120), 60)
    assert f"about {minutes} min {rest:02d} s left" in forecast.said(None)
    assert (
        f"{120 / (expected + 120):.0%} of it for evaluations (2 more evaluations of about 1 min 00 s)"
        in forecast.said(None)
    )


def test_spread_takes_numbers_from_all_over() -> None:
    assert list(spread(range(10, 20), 100)) == list(range(10, 20))
    assert list(spread(range(100), 4)) == [12, 37, 62, 87]
    assert list(spread(range(5, 5), 4)) == []
