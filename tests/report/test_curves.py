import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biencoder.errors import UserError
from biencoder.report.curves import POINTS, read_curves


def step(number: int, **changes: Any) -> dict[str, Any]:
    line = {"step": number, "loss": 1.0, "learning_rate": 1e-4, "gradient_norm": 2.0, "queries": 32, "seconds": 0.5}
    return line | {"tokens_per_second": 1000.0} | changes


def evaluated(number: int, value: float, **changes: Any) -> dict[str, Any]:
    return {"step": number, "evaluation": {"ndcg@10": value, "map@100": 0.1}} | changes


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_sums_are_over_all_steps(tmp_path: Path) -> None:
    lines = [
        evaluated(0, 0.5, seconds=3.0, peak_bytes=100),
        *(step(i) for i in range(1, 1001)),
        evaluated(1000, 0.75, seconds=4.0, peak_bytes=90),  # after a resume, in another process
    ]
    curves = read_curves(write(tmp_path / "metrics.jsonl", lines))
    assert (curves.last_step, curves.queries, curves.tokens) == (1000, 32_000, 500_000)
    assert (curves.training_seconds, curves.evaluation_seconds, curves.peak_bytes) == (500, 7, 100)
    assert curves.evaluated_steps.tolist() == [0, 1000]
    assert curves.evaluated.tolist() == [0.5, 0.75]


def test_a_long_run_has_no_more_points_than_a_chart_has_room_for(tmp_path: Path) -> None:
    lines = [step(i, loss=float(i)) for i in range(1, 10_001)]
    curves = read_curves(write(tmp_path / "metrics.jsonl", lines))
    assert len(curves.steps) == len(curves.loss) == len(curves.smooth_loss) == POINTS
    assert curves.loss.mean() == pytest.approx(5000.5, rel=0.01)
    assert (np.diff(curves.steps) > 0).all()


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    lines = [step(1), step(2, loss="NaN", gradient_norm="Infinity"), step(3, loss=3.0)]
    curves = read_curves(write(tmp_path / "metrics.jsonl", lines))
    assert np.isnan(curves.loss[1])
    assert np.isnan(curves.gradient_norm[1])
    assert (curves.loss[0], curves.loss[2]) == (1, 3)


def test_an_older_run_did_not_time_its_evaluations(tmp_path: Path) -> None:
    curves = read_curves(write(tmp_path / "metrics.jsonl", [evaluated(0, 0.5), step(1)]))
    assert curves.evaluation_seconds is None
    assert curves.peak_bytes is None


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"loss": 1}', '{"step": 1, "loss": "many"}', '{"step": 1, "evaluation": {}}', "7", "\x00"]
)
def test_another_file_is_named_with_its_line(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", [step(1)])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a line that biencoder wrote"):
        read_curves(path)
