from pathlib import Path

import numpy as np

from biencoder.config import TrainConfig
from biencoder.report.guard import GUARD_COLUMNS, guard_rows, guard_verdicts, next_step
from biencoder.retrieval.comparing.comparison import Comparison, compare
from biencoder.retrieval.evaluate import Evaluation


def evaluation(values: np.ndarray) -> Evaluation:
    per_query = {f"q{i}": float(value) for i, value in enumerate(values)}
    per_measure = {"recall@10": per_query, "ndcg@10": per_query}
    return Evaluation({name: float(values.mean()) for name in per_measure}, per_measure, len(values), 10, "made up")


def comparisons(shift: float) -> list[Comparison]:
    values = np.random.default_rng(0).uniform(0.3, 0.6, 50)
    noise = np.random.default_rng(1).normal(0, 0.05, 50)
    return compare(evaluation(values), evaluation(values + noise - noise.mean() + shift))


GUARDS = {"lost": comparisons(-0.1), "won": comparisons(0.1), "unknown": comparisons(0.001)}


CONFIG = TrainConfig(model="base", train_data=(Path("f"),), output_dir=Path("my models/out"))


def test_a_row_a_folder() -> None:
    rows = guard_rows(GUARDS)
    assert [row[:2] for row in rows] == [[name, "ndcg@10"] for name in GUARDS]
    assert all(len(row) == len(GUARD_COLUMNS) for row in rows)
    assert rows[0][4] == "-0.1000"


def test_a_significant_loss_is_said_in_words() -> None:
    lost, won, unknown = guard_verdicts(GUARDS)
    assert lost.startswith("On lost the tuned model has LOST some of what its base knew: -0.1000 ndcg@10 (p = 0.0001)")
    assert won.startswith("On won the tuned model has improved: +0.1000 ndcg@10")
    assert unknown.startswith("On unknown: no significant change, +0.0010 ndcg@10")


def test_what_to_do_against_a_loss_and_only_then() -> None:
    said = next_step(GUARDS, CONFIG, 0.0)
    assert "train with --keep-base 0.5 into another folder" in said
    assert "  biencoder merge base 'my models/out' --output-dir 'my models/out-merged'" in said
    assert "--keep-base 0.75" in next_step(GUARDS, CONFIG, 0.5)
    assert next_step({name: GUARDS[name] for name in ("won", "unknown")}, CONFIG, 0.0) == ""
