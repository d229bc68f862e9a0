"""A new head, a new pooling and a new loss are each a few lines, and none of them touches the package."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import WORDS, tiny_model
from torch import Tensor, nn

from biencoder import Encoder, TrainConfig
from biencoder.data.table import ExampleTable
from biencoder.model.heads.head import Head
from biencoder.model.merging.merge import mix_in
from biencoder.model.packing import PackedBatch
from biencoder.model.pooling import POOLINGS, mean_tokens
from biencoder.model.representations.dense import Dense
from biencoder.objective.labels import Labels
from biencoder.objective.objective import Losses, Objective
from biencoder.training.preparation import prepare_encoder, set_up
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.steps.snapshot import restore, save
from biencoder.training.steps.train_step import train_step

STEPS = 30


class ProjectedHead(Head):
    """The mean over a text's tokens, projected by a layer that learns."""

    dim = 8

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, self.dim)

    def forward(self, hidden_TD: Tensor, starts: Tensor, batch: PackedBatch) -> Dense:  # noqa: ARG002
        return Dense(nn.functional.normalize(self.projection(mean_tokens(hidden_TD, starts)), dim=-1))


def middle_token(hidden_TD: Tensor, starts: Tensor) -> Tensor:
    """The token in the middle of each text."""
    return hidden_TD[(starts[:-1] + starts[1:]) // 2]


@dataclass(frozen=True)
class MarginObjective(Objective):
    """The positive scores at least a margin above each other passage of the batch."""

    def losses(self, queries: Any, passages: Any, all_queries: Any, labels: Labels) -> Losses:  # noqa: ARG002
        scores = queries.scores(passages)
        excess = (scores - scores.gather(1, labels.groups[:, :1]) + 0.3).clamp(min=0)
        loss = excess.scatter(1, labels.groups[:, :1], 0.0).mean(dim=1)
        return Losses(loss, None, loss, scores)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Each query is a word, and the passage that answers it holds that word among others."""
    rows = [{"query": word, "pos": [f"{WORDS[0]} {word} {WORDS[1]}"]} for word in WORDS[2:34]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_model(tmp_path / "base", dropout=True)
    return TrainConfig(
        model=str(model),
        train_data=(tmp_path / "pairs.jsonl",),
        output_dir=tmp_path / "out",
        batch_size=16,
        group_size=1,
        cluster_size=1,
        learning_rate=3e-3,
        max_steps=STEPS,
        general_guard=False,
        cross_validate=False,
    )


def prepared(config: TrainConfig) -> tuple[Encoder, TrainConfig, ExampleTable]:
    encoder, config = prepare_encoder(config, 32)
    return encoder, config, ExampleTable.from_files(config.data_sets[0].path)


def take_steps(setup: Setup, progress: TrainingProgress, until: int = STEPS) -> list[float]:
    losses = []
    while progress.step < until:
        batch = progress.batcher(progress.sampler.plan(progress.step))
        losses.append(train_step(setup, progress, batch).loss)
        progress.step += 1
    return losses


def falls(losses: list[float]) -> bool:
    return sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("keep_tokens", [10**9, 0])
def test_a_head_with_weights_trains_and_resumes(config: TrainConfig, keep_tokens: int) -> None:
    encoder, config, examples = prepared(config)
    encoder.head = ProjectedHead(encoder.backbone.config.hidden_size)
    before = encoder.head.projection.weight.detach().clone()
    setup, progress = set_up(config, encoder, examples, None)  # type: ignore[arg-type]  # nothing is evaluated
    progress.keep_tokens = keep_tokens
    config.output_dir.mkdir()
    (config.output_dir / "metrics.jsonl").touch()
    losses = take_steps(setup, progress, 10)
    save(setup, progress)
    losses += take_steps(setup, progress)
    after = encoder.head.projection.weight.detach().clone()
    assert falls(losses)
    assert not torch.equal(before, after)
    assert encoder.encode(["word1 word2"]).shape == (1, ProjectedHead.dim)

    mix_in(encoder, config.model, setup.base_head, 0.25)
    torch.testing.assert_close(encoder.head.projection.weight.detach(), 0.25 * before + 0.75 * after)
    with pytest.raises(ValueError, match="the head has weights of its own"):
        encoder.save(config.output_dir)

    restore(setup, progress, config.output_dir / "checkpoints" / "step-00000010")
    progress.keep_tokens = keep_tokens
    encoder.train()
    assert take_steps(setup, progress) == losses[10:]
    assert torch.equal(encoder.head.projection.weight, after)


def test_a_pooling(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POOLINGS, "middle", middle_token)
    _, config, examples = prepared(config)
    encoder = Encoder.load(config.model, pooling="middle")
    setup, progress = set_up(config, encoder, examples, None)  # type: ignore[arg-type]  # nothing is evaluated
    assert falls(take_steps(setup, progress))


def test_a_loss(config: TrainConfig) -> None:
    encoder, config, examples = prepared(replace(config, dropout=0.0))  # under which 30 steps show that it falls
    setup, progress = set_up(config, encoder, examples, None)  # type: ignore[arg-type]  # nothing is evaluated
    setup.objectives[:] = [MarginObjective()]
    assert falls(take_steps(setup, progress))
