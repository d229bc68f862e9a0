"""AdamW's groups, its schedules, and its state through a checkpoint."""

import math

import pytest
import torch
from torch import nn

from biencoder.training.optimizer import (
    adamw,
    learning_rate_at,
    optimizer_state,
    restore_optimizer,
    usual_learning_rate,
)


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def train(model: nn.Module, optimizer: torch.optim.AdamW, steps: range) -> None:
    for step in steps:
        ids = torch.randint(7, (5,), generator=torch.Generator().manual_seed(step))
        model(ids).square().sum().backward()
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01 / (step + 1)
        optimizer.step()
        optimizer.zero_grad()


def test_only_matrices_decay() -> None:
    model = make_model()
    model[3].requires_grad_(False)
    optimizer = adamw(model, 0.1, 0.5)
    shapes = [(group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in optimizer.param_groups]
    assert shapes == [(0.5, [(7, 4), (4, 4)]), (0.0, [(4,), (4,), (4,)])]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim == 2 and parameter.requires_grad else 1.0
        torch.testing.assert_close(parameter, before[name] * factor)


@pytest.mark.parametrize(("schedule", "half"), [("linear", 0.5), ("cosine", 0.5)])
def test_schedules(schedule: str, half: float) -> None:
    def rate(step: int) -> float:
        return learning_rate_at(step, peak=2.0, total=110, warmup=10, schedule=schedule)

    assert [rate(step) for step in range(10)] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rate(10) == 2.0
    assert rate(60) == pytest.approx(2.0 * half)
    assert rate(35) == pytest.approx(1.5 if schedule == "linear" else 1 + math.cos(math.pi / 4))
    falling = [rate(step) for step in range(10, 110)]
    assert falling == sorted(falling, reverse=True)
    assert 0 < falling[-1] < 0.03


def test_without_warm_up_and_with_nothing_else() -> None:
    assert learning_rate_at(0, peak=1.0, total=1, warmup=0, schedule="linear") == 1.0
    assert learning_rate_at(0, peak=1.0, total=1, warmup=1, schedule="cosine") == 1.0


def test_a_restored_optimizer_goes_on_bit_for_bit() -> None:
    whole = make_model()
    train(whole, adamw(whole, 0.01, 0.1), range(6))

    first = make_model()
    optimizer = adamw(first, 0.01, 0.1)
    train(first, optimizer, range(3))
    state = {name: value.clone() for name, value in optimizer_state(first, optimizer).items()}
    weights = {name: value.clone() for name, value in first.state_dict().items()}
    train(first, optimizer, range(3, 5))  # what is saved must not move on

    resumed = make_model()
    resumed.load_state_dict(weights)
    again = adamw(resumed, 0.01, 0.1)
    restore_optimizer(resumed, again, state)
    train(resumed, again, range(3, 6))
    assert {name.split("/")[-1] for name in state} == {"exp_avg", "exp_avg_sq", "step"}
    assert len(state) == 3 * len(weights)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])


def test_wider_models_learn_at_lower_rates_and_adapters_at_higher_ones() -> None:
    rates = [usual_learning_rate(width, lora=False, averaged=False) for width in (32, 384, 512, 768, 1024)]
    assert rates == pytest.approx([1e-4, 1e-4, 7.5e-5, 5e-5, 3.75e-5])
    assert usual_learning_rate(768, lora=False, averaged=True) == pytest.approx(1e-4)
    assert usual_learning_rate(768, lora=True, averaged=True) == pytest.approx(5e-4)
