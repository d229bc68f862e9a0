"""A second look at small data: five more models, each trained without a part of the queries and asked these."""

import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import small_run, stop_in_step

from biencoder import Encoder
from biencoder.config import TrainConfig
from biencoder.data.evaluation.held_out import hold_out_part
from biencoder.data.table import ExampleTable
from biencoder.retrieval.comparing.comparison import compare
from biencoder.retrieval.comparing.second_look import BEYOND, second_look
from biencoder.retrieval.evaluate import Evaluation, evaluate
from biencoder.retrieval.findings import Findings
from biencoder.training import cross_validation
from biencoder.training.run import train


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return small_run(tmp_path, cross_validate=True)


def eval_json(config: TrainConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((config.output_dir / "eval.json").read_text())
    return found


def test_every_query_is_asked_once_by_a_model_that_did_not_train_on_it(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts: list[tuple[Evaluation, Evaluation]] = []

    def kept(given: list[tuple[Evaluation, Evaluation]]) -> Any:
        parts.extend(given)
        return second_look(given)

    monkeypatch.setattr(cross_validation, "second_look", kept)
    assert train(config) is not None
    table = ExampleTable.from_files(config.train_data)  # type: ignore[arg-type]
    asked = [set(before.per_query["ndcg@10"]) for before, _ in parts]
    assert len(set().union(*asked)) == sum(map(len, asked)) == len(np.unique(table.query_hashes)) == 60
    for number, (before, after) in enumerate(parts):
        part = hold_out_part(table, seed=config.seed, part=number, parts=5, passages=6000)
        assert set(part.collection.query_ids) == asked[number]
        assert len(part.train) == 48
        assert before.metrics == evaluate(Encoder.load(config.model, max_length=32), part.collection).metrics
        assert after.metrics != before.metrics
    found = eval_json(config)["cross_validation"]
    assert found == second_look(parts).to_json()
    assert found["comparison"][0]["queries"] == 60
    out = capsys.readouterr().out
    assert "6 held-out queries cannot tell whether the model got better" in out
    assert "part 5 of 5: 48 rows to train on, 12 queries to ask" in out
    assert second_look(parts).sentence() in out
    assert second_look(parts).sentence() in (config.output_dir / "README.md").read_text()
    assert "Cross-validation" in (config.output_dir / "report.html").read_text()
    assert not (config.output_dir / "cross-validation").exists()


@pytest.mark.parametrize("killed_in", [16, 19])  # the run takes 14 steps, and each of its parts 12
def test_a_run_that_was_killed_while_it_looked_again_ends_in_the_same_bits(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: int
) -> None:
    whole = replace(config, output_dir=tmp_path / "whole")
    train(whole)
    stop_in_step(killed_in, config, monkeypatch)
    assert (config.output_dir / "cross-validation" / "1" / "checkpoints").is_dir() is (killed_in > 17)
    assert (config.output_dir / "model.safetensors").is_file()
    train(config)
    assert eval_json(config) == eval_json(whole)


def test_a_part_that_was_trained_for_another_share_of_the_base_is_trained_again(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(config, output_dir=tmp_path / "whole")
    train(whole)
    stop_in_step(19, config, monkeypatch)
    marker = config.output_dir / "cross-validation" / "1" / "run.json"
    saved = json.loads(marker.read_text())
    saved["config"]["keep_base"] = 0.25  # another device may have chosen it
    marker.write_text(json.dumps(saved))
    train(config)
    assert eval_json(config) == eval_json(whole)


@pytest.mark.parametrize("changes", [{"cross_validate": False}, {"max_steps": 3, "cross_validate": False}])
def test_no_second_look_where_nobody_wants_one(config: TrainConfig, changes: dict[str, Any]) -> None:
    train(replace(config, **changes))
    assert "cross_validation" not in eval_json(config)


def test_a_second_look_has_doubled_p_values_and_the_words_for_them() -> None:
    draw = np.random.default_rng(0)

    def of(values: np.ndarray, first: int) -> Evaluation:
        per_query = {f"q{first + i}": float(value) for i, value in enumerate(values)}
        found = Findings(beyond={query: value**2 for query, value in per_query.items()})
        return Evaluation({"ndcg@10": float(values.mean())}, {"ndcg@10": per_query}, len(values), 9, "part", found)

    def pooled(gain: float) -> tuple[Any, Any]:
        before = [draw.random(40), draw.random(30)]
        after = [each + gain + draw.normal(0, 0.2, len(each)) for each in before]
        parts = [(of(b, 40 * i), of(a, 40 * i)) for i, (b, a) in enumerate(zip(before, after, strict=True))]
        once = compare(of(np.concatenate(before), 0), of(np.concatenate(after), 0))
        return second_look(parts), once

    look, (once, *_) = pooled(0.07)
    assert astuple(look.comparison[0])[1:] == pytest.approx(astuple(replace(once, p=min(1.0, 2 * once.p)))[1:])
    assert [each.measure for each in look.comparison] == ["ndcg@10", BEYOND]
    assert look.deciding == look.comparison[1]
    assert look.deciding.difference != look.comparison[0].difference
    assert look.sentence().startswith("By cross-validation, training makes the model better: +0.1")
    assert pooled(-0.2)[0].sentence().startswith("By cross-validation, training makes the model WORSE: -0.")
    assert pooled(0.0)[0].sentence().startswith("Cross-validation cannot tell the two apart either: ")
    part = (of(draw.random(5), 0), of(draw.random(5), 0))
    with pytest.raises(ValueError, match="two parts"):
        second_look([part, part])


def test_twelve_pairs_are_enough_to_begin(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    (data,) = config.train_data
    assert isinstance(data, Path)
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:12]))
    assert train(config) is not None
    out = capsys.readouterr().out
    assert "1 held-out query cannot tell" in out
    assert eval_json(config)["cross_validation"]["comparison"][0]["queries"] == 12
