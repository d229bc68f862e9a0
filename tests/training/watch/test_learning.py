"""The watch warns of models that stop learning, once, and of no others."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import final_state, metrics, small_run
from torch import Tensor
from torch.nn.functional import normalize

from biencoder.model.encoder import Encoder
from biencoder.model.representations.dense import Dense
from biencoder.model.representations.representation import Representation
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.objective.labels import Labels
from biencoder.training.run import train
from biencoder.training.watch import learning as watch
from biencoder.training.watch.learning import (
    Spread,
    Watch,
    effective_rank,
    is_guessing,
    mean_cosine,
    spread_of,
    what_collapsed,
)


def vectors(count: int, dim: int, *, mean: float = 0.0) -> Tensor:
    """Random directions about a common one of length ``mean``."""
    draw = torch.randn(count, dim, generator=torch.Generator().manual_seed(0)) / math.sqrt(dim)
    draw[:, 0] += mean
    return normalize(draw, dim=1)


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    rows = vectors(20, 8, mean=0.7) * torch.arange(1, 21)[:, None]
    cosines = normalize(rows, dim=1) @ normalize(rows, dim=1).T
    wanted = (cosines.sum() - 20) / (20 * 19)
    assert mean_cosine(rows) == pytest.approx(float(wanted), abs=1e-6)


def test_the_effective_rank_is_that_of_roy_and_vetterli() -> None:
    rows = vectors(20, 8)
    shares = torch.linalg.svdvals(rows.double())
    shares = shares / shares.sum()
    assert effective_rank(rows) == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-6)
    assert effective_rank(torch.eye(8)) == pytest.approx(8)
    assert effective_rank(torch.ones(30, 8)) == pytest.approx(1, abs=1e-4)


def test_few_passages_or_broken_ones_are_not_looked_at() -> None:
    assert spread_of(vectors(watch.FEWEST_PASSAGES - 1, 4)) is None
    broken = vectors(20, 4)
    broken[0, 0] = math.nan
    assert spread_of(broken) is None
    many = spread_of(vectors(1000, 4))
    assert many is not None
    assert many.passages == watch.PASSAGES


@pytest.mark.parametrize(
    ("start", "now", "words"),
    [
        (Spread(0.15, 100, 128), Spread(0.90, 90, 128), "the vectors of different passages become the same"),
        (Spread(0.95, 100, 128), Spread(0.995, 90, 128), "the vectors of different passages become the same"),
        (Spread(0.15, 100, 128), Spread(0.15, 20, 128), "collapse into few dimensions"),
        (Spread(1.0, 1, 128), Spread(1.0, 1, 128), "the base model gives all passages the same vector"),
        (Spread(0.95, 100, 128), Spread(0.95, 100, 128), None),  # a random model, or one trained at a low temperature
        (Spread(0.95, 100, 128), Spread(0.20, 90, 128), None),
        (Spread(0.15, 100, 128), Spread(0.40, 60, 128), None),
        (Spread(0.15, 100, 128), Spread(0.15, 20, 24), None),  # a last, short batch
    ],
)
def test_what_counts_as_collapsed_is_relative_to_the_start(start: Spread, now: Spread, words: str | None) -> None:
    found = what_collapsed(start, now)
    assert (found is None) == (words is None)
    assert words is None or words in str(found)


@pytest.mark.parametrize(
    ("ratio", "guessing"),
    [
        (lambda i: 1.0 + 0.01 * (-1) ** i, True),
        (lambda _: 0.9, False),
        (lambda _: 1.3, False),  # confidently wrong at first, as random models are: not flat at guessing
        (lambda i: 1.02 - 0.001 * i, False),  # it falls
        (lambda i: 0.99 + 0.0004 * i, True),
    ],
)
def test_guessing_is_a_flat_loss_at_the_logarithm_of_the_candidates(
    ratio: Callable[[int], float], guessing: bool
) -> None:
    ratios = [ratio(i) for i in range(watch.WINDOW)]
    assert is_guessing(ratios) == guessing
    assert not is_guessing(ratios[1:])


def test_a_warning_is_given_once_also_by_a_run_that_was_resumed() -> None:
    seen = Watch()
    assert seen.look(0, Spread(0.1, 100, 128)) is None
    assert "--learning-rate" in str(seen.look(0, Spread(0.99, 100, 128)))
    warnings = [seen.follow(1, 2.0, 2.0) for _ in range(watch.WINDOW + 5)]
    assert [i for i, warning in enumerate(warnings) if warning] == [watch.WINDOW - 1]
    assert "are mixed up" in str(warnings[watch.WINDOW - 1])
    resumed = Watch(**json.loads(json.dumps(asdict(seen))))
    assert resumed == seen
    assert resumed.look(0, Spread(0.99, 100, 128)) is None
    assert resumed.follow(1, 2.0, 2.0) is None
    assert resumed.follow(0, math.nan, 2.0) is None


@pytest.mark.parametrize(("in_batch", "two_way"), [(True, False), (True, True), (False, False)])
def test_the_loss_of_guessing_is_that_of_equal_vectors(in_batch: bool, two_way: bool) -> None:
    known = torch.zeros(3, 7, dtype=torch.bool)
    known[0, 3] = known[1, 2] = True  # another's positive; its own stays a candidate
    labels = Labels(
        torch.tensor([[0, 1], [2, -1], [3, 4]]), known, known_queries=torch.eye(3, dtype=torch.bool).roll(1, 0)
    )
    objective = ContrastiveObjective(0.02, in_batch_negatives=in_batch, two_way=two_way)
    losses = objective(Dense(torch.ones(3, 4)), Dense(torch.ones(7, 4)), labels)
    assert objective.loss_of_guessing(labels, 7, 3) == pytest.approx(float(losses.contrastive.mean()), rel=1e-6)


def test_a_learning_rate_that_ruins_the_model_is_said_early(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(small_run(tmp_path, learning_rate=3.0, max_steps=22))
    said = [record.getMessage() for record in caplog.records if "learning rate is too high" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("step 21: ")
    assert "the learning rate is too high" in said[0]


def test_models_that_learn_raise_no_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Random ones, whose vectors lie close together at first; and what is seen is written down."""
    for name, changes in (("mean", {"pooling": "mean", "dropout": 0.1}), ("raw", {"normalize": False})):
        (tmp_path / name).mkdir()
        config = small_run(tmp_path / name, max_steps=60, **changes)
        with caplog.at_level(logging.WARNING):
            train(config)
        seen = {line["step"]: line for line in metrics(config.output_dir) if "mean_cosine" in line}
        assert list(seen) == [1, 21, 41]
        assert all(-1 <= line["mean_cosine"] <= 1 <= line["effective_rank"] <= 16 for line in seen.values())
    assert not caplog.records


@pytest.mark.parametrize("what", ["equal vectors", "a rate of nearly nothing"])
def test_a_model_that_learns_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    config = small_run(tmp_path, max_steps=65, warmup_ratio=0.1)
    if what == "equal vectors":
        forward = Encoder.forward

        def equal(encoder: Encoder, batch: Any) -> Representation:
            found = forward(encoder, batch)
            return found.map(lambda x: x * 0 + 1 / math.sqrt(x.shape[1])) if encoder.training else found

        monkeypatch.setattr(Encoder, "forward", equal)
    else:
        config = replace(config, learning_rate=1e-12, temperature=0.5)
    with caplog.at_level(logging.WARNING):
        train(config)
    said = [record.getMessage() for record in caplog.records]
    flat = [message for message in said if "the loss has stayed at the level of guessing" in message]
    assert len(flat) == 1
    assert flat[0].startswith(f"step {7 + watch.WINDOW}: ")  # a window after warm-up
    assert ("step 1: the base model gives all passages the same vector" in said[0]) == (what == "equal vectors")
    state = final_state(config.output_dir)["watch"]
    assert state["warned"] == (["collapse"] if what == "equal vectors" else []) + ["guessing 0"]
