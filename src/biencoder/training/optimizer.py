"""AdamW, its learning-rate schedules as functions of the step, and its state by parameter name."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from biencoder.config.choices import COSINE, FP16, LINEAR
from biencoder.distributed import sum_over_ranks
from biencoder.model.heads.query_table import QueryTableHead
from biencoder.model.parallel.sharded import cut_like, device_of, is_cut, own

TIMES = "times_learning_rate"  # in a group of parameters: its share of the learning rate, if that is not 1
TABLE_TIMES = 100.0  # most entries of a table get no gradient in a step


def set_learning_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """The rate of the next step; of some groups, a multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(TIMES, 1.0)


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with decay on matrices only: not on biases, nor on gains of normalisation.

    A table of weights for queries has a group of its own, whose rate is :data:`TABLE_TIMES` that of the others. PyTorch
    updates the weights of a group together, so whole weights and those that are cut over ranks have groups apart.
    """
    tables = {module.weights_V for module in model.modules() if isinstance(module, QueryTableHead)}
    trained = [p for p in model.parameters() if p.requires_grad and p not in tables]
    groups = [
        {"params": [p for p in alike if (p.ndim >= 2) == is_matrix], "weight_decay": weight_decay * is_matrix}
        for alike in ([p for p in trained if is_cut(p) == cut] for cut in (False, True))
        if alike
        for is_matrix in (True, False)
    ]
    groups += [{"params": list(tables), "weight_decay": 0.0, TIMES: TABLE_TIMES}] if tables else []
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scale gradients down to an L2 norm of ``most``, if theirs is above it.

    Args:
        parameters: those that learn; the gradients are already sums over ranks.
        most: the norm.

    Returns:
        The norm before, over all weights, also over the rows that other ranks hold: a scalar.
    """
    cut = [own(p.grad) for p in parameters if p.grad is not None and is_cut(p.grad)]
    if not cut:
        return torch.nn.utils.clip_grad_norm_(parameters, most)
    whole = [p.grad for p in parameters if p.grad is not None and not is_cut(p.grad)]
    device = device_of(next(p for p in parameters if is_cut(p)))
    of_cut, of_whole = (torch.nn.utils.get_total_norm(part).to(device).square() for part in (cut, whole))
    norm = (sum_over_ranks(of_cut) + of_whole).sqrt()
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*cut, *whole):
        gradient.mul_(factor.to(gradient.device))
    return norm


def loss_scaler(precision: str | None, device: torch.device) -> GradScaler:
    """A scale for gradients in float16: halved when they overflow, doubled after 2,000 steps that went well.

    Micikevicius et al. 2018, "Mixed Precision Training", section 3.2. In other precisions it does nothing.
    """
    return GradScaler(device.type, enabled=precision == FP16)


STATIC_RATE = 1e-2  # of a table of token vectors, most of which get no gradient in a step (docs/distill.md)


def usual_learning_rate(width: int, *, lora: bool, averaged: bool) -> float:
    """The highest learning rate when you give none.

    It is 5e-5 at BERT-base's width of 768, as is usual there, and goes with the inverse of the width, as Adam's rates
    do from model to model (Yang et al. 2022, "Tensor Programs V", table 3). It is at most the 1e-4 of MiniLM's width,
    384 (docs/recipes.md). Low-rank adapters learn best at ten times the rate of the whole model (Schulman et al. 2025,
    "LoRA Without Regret"). In a run of some dozen steps, a whole model that is averaged with its base afterwards learns
    best at twice the rate: more is learned, and the average takes back what was lost (docs/recipes.md).
    """
    return min(1e-4, 5e-5 * 768 / width) * (10 if lora else 2 if averaged else 1)


def linear(progress: float) -> float:
    """From 1 to 0 in a straight line."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine (Loshchilov and Hutter 2017, eq. 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {LINEAR: linear, COSINE: cosine}


def learning_rate_at(step: int, *, peak: float, total: int, warmup: int, schedule: str) -> float:
    """The rate of step 0, 1, … ``total - 1``: up to ``peak`` over ``warmup`` steps, then down along ``schedule``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * SCHEDULES[schedule]((step - warmup) / max(1, total - warmup))


def optimizer_state(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Moments and step counts by ``<name of the parameter>/<name of the state>``, cut as their parameters are."""
    return {
        f"{name}/{key}": value.detach()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.AdamW, state: dict[str, Tensor]) -> None:
    """Put back what :func:`optimizer_state` gave, whole."""
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        parameter_name, key = name.rsplit("/", 1)
        parameter = parameters[parameter_name]
        if value.shape == parameter.shape:  # a moment, and no count of steps
            value = cut_like(value, parameter)
        optimizer.state[parameter][key] = value.to(parameter.device)
