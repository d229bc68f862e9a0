"""A training run of seconds: rows to train on, a configuration for them, and what the run wrote."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny import WORDS, tiny_model
from torch import nn

from biencoder import Encoder
from biencoder.config import TrainConfig
from biencoder.distributed import sum_gradients
from biencoder.training.run import train

ROWS = 60
BATCH = 8


def write_pairs(path: Path) -> Path:
    """Queries of two words; the passage that answers one repeats them among others."""
    draw = np.random.default_rng(0)
    with path.open("w") as file:
        for i in range(ROWS):
            query = f"{WORDS[i]} {WORDS[i + 100]}"
            noise = [" ".join(draw.choice(WORDS, size=5)) for _ in range(2)]
            file.write(json.dumps({"query": query, "pos": [f"{query} {noise[0]}"], "neg": noise[1:]}) + "\n")
    return path


def small_run(folder: Path, *, dropout: bool = False, **changes: Any) -> TrainConfig:
    """A run of 7 steps an epoch into ``folder / "out"``."""
    tiny_model(folder / "model", dropout=dropout)
    write_pairs(folder / "pairs.jsonl")
    return small_config(folder, **changes)


def small_config(folder: Path, **changes: Any) -> TrainConfig:
    """:func:`small_run` on files that it has written before."""
    settings: dict[str, Any] = {
        "model": str(folder / "model"),
        "train_data": (folder / "pairs.jsonl",),
        "output_dir": folder / "out",
        "batch_size": BATCH,
        "group_size": 2,
        "passage_max_len": 32,
        "query_max_len": 16,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "epochs": 2,
        "eval_steps": 7,
        "save_steps": 3,
        "general_guard": False,
        "cross_validate": False,
    }
    return TrainConfig(**settings | changes)


def stop_in_step(step: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """End a run inside of a step, counted from 1, when its gradients exist and the weights have not changed."""
    steps = iter(range(1, 10**6))

    def stopping(parameters: Iterable[nn.Parameter]) -> None:
        if next(steps) == step:
            raise InterruptedError
        sum_gradients(parameters)

    with monkeypatch.context() as patched:
        patched.setattr("biencoder.training.steps.train_step.sum_gradients", stopping)
        with pytest.raises(InterruptedError):
            train(config)


def resumed_and_whole(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights of a run that was stopped in step 6 and continued, and those of the same run without a stop."""
    whole = replace(config, output_dir=config.output_dir.with_name("whole"))
    train(whole)
    stop_in_step(6, config, monkeypatch)
    train(config)
    resumed, uninterrupted = (Encoder.load(each.output_dir).state_dict() for each in (config, whole))
    return resumed, uninterrupted


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of steps, not those of evaluations; no other constants than JSON's."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in (json.loads(line, parse_constant=refuse) for line in lines) if "loss" in line]


def final_weights(folder: Path) -> dict[str, np.ndarray]:
    """Those of the newest checkpoint, whichever was evaluated best."""
    return dict(load_file(max((folder / "checkpoints").glob("step-*")) / "model.safetensors"))


def final_state(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint says beside tensors."""
    state: dict[str, Any] = json.loads((max((folder / "checkpoints").glob("step-*")) / "state.json").read_text())
    return state
