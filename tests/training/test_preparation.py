"""How much is set aside for an evaluation, and whether its figure is one of all passages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model

from biencoder import Encoder, TrainConfig, evaluate
from biencoder.data.evaluation.held_out import hold_out
from biencoder.data.files.beir import Collection
from biencoder.data.table import ExampleTable
from biencoder.training.preparation import _held_out_size, prepare_encoder
from biencoder.training.sources.glance import glance


@pytest.mark.parametrize(
    ("rows", "changes", "queries", "passages"),
    [
        (100, {}, 10, 3000),
        (2000, {}, 200, 3000),
        (13_211, {}, 300, 3000),
        (1_000_000, {}, 300, 225_000),
        (13_211, {"epochs": 3}, 300, 4459),  # an evaluation an epoch, and one before
        (13_211, {"eval_steps": 10}, 300, 600),
        (13_211, {"max_steps": 5}, 300, 3000),
    ],
)
def test_a_minute_or_15_percent_of_the_run(rows: int, changes: dict[str, int], queries: int, passages: int) -> None:
    asked: dict[str, Any] = {"batch_size": 32, "epochs": 1} | changes
    config = TrainConfig(model="m", train_data=(Path("p"),), output_dir=Path("o"), **asked)
    held = _held_out_size(config, rows)
    assert held[0] == queries
    assert held[1] == pytest.approx(passages, rel=0.01)


@pytest.mark.parametrize(
    ("rows", "changes", "rate"),
    [
        (100, {"epochs": 9}, 1e-4),  # 18 steps
        (100, {}, 2e-4),
        (1280, {}, 2e-4),
        (1280, {"max_steps": 19}, 1e-4),
        (6400, {}, 2e-4),
        (6401, {}, 1e-4),  # 101 steps
        (400, {"epochs": 3}, 2e-4),
        (1280, {"keep_base": 0}, 1e-4),
        (1280, {"general_guard": False}, 1e-4),  # no guard, so nothing of the base is kept
        (1280, {"keep_base": 0.3, "general_guard": False}, 2e-4),
        (1280, {"learning_rate": 5e-5}, 5e-5),
    ],
)
def test_a_model_that_is_averaged_with_its_base_learns_at_twice_the_rate_in_some_dozen_steps(
    rows: int, changes: dict[str, Any], rate: float, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model")
    config = TrainConfig(model=str(model), train_data=(Path("p"),), output_dir=Path("o"), **changes)
    assert prepare_encoder(config, rows)[1].learning_rate == pytest.approx(rate)


@pytest.mark.parametrize(
    ("rows", "changes", "epochs"),
    [
        (20, {}, 10),
        (300, {}, 10),
        (1000, {}, 4),
        (1000, {"batch_size": 16}, 1),
        (3200, {}, 1),
        (1_000_000, {}, 1),
        (300, {"epochs": 1}, 1),
        (1_000_000, {"epochs": 3}, 3),
    ],
)
def test_small_data_are_passed_over_more_than_once(
    rows: int, changes: dict[str, Any], epochs: int, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model")
    config = TrainConfig(model=str(model), train_data=(Path("p"),), output_dir=Path("o"), **changes)
    assert prepare_encoder(config, rows)[1].epochs == epochs


@pytest.mark.slow
def test_the_figure_is_nearly_one_of_all_passages(medquad: Path, minilm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus of a quarter of the passages, ten for each query, as in a run over all of MedQuAD."""
    table = ExampleTable.from_files([medquad / "train.jsonl.gz"]).select(np.arange(2400))
    encoder = Encoder.load(minilm, max_length=64, precision="auto")
    look = glance(encoder, 10_000)
    whole, part = (hold_out(table, seed=1, queries=60, passages=n, nearest=look).collection for n in (100_000, 580))
    assert len(part.corpus_ids) == 580 < len(whole.corpus_ids) / 3.5
    assert part.query_ids == whole.query_ids
    drawn = np.random.default_rng(0).permutation(len(whole.corpus_ids))
    answers = {document for judged in whole.qrels.values() for document in judged}
    others = [i for i in drawn if whole.corpus_ids[i] not in answers][: 580 - len(answers)]
    kept = [i for i, document in enumerate(whole.corpus_ids) if document in answers] + others
    at_random = Collection(
        [whole.corpus_ids[i] for i in kept],
        [whole.corpus_texts[i] for i in kept],
        whole.query_ids,
        whole.query_texts,
        whole.qrels,
        "random passages",
    )
    vectors = dict(zip(whole.corpus_texts, encoder.encode_passages(whole.corpus_texts), strict=True))
    monkeypatch.setattr(encoder, "represent_passages", lambda texts, _: np.stack([vectors[text] for text in texts]))
    truth, figure, easy = (evaluate(encoder, each).metrics["ndcg@10"] for each in (whole, part, at_random))
    print(f"nDCG@10 among all passages {truth:.4f}, held-out corpus {figure:.4f}, random passages {easy:.4f}")
    assert 0 <= figure - truth < 0.015
    assert easy - truth > 2 * (figure - truth)
