"""The promises: W processes equal one, a cached step equals a plain one. (Packed = padded: tests/model.)"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
import world
from tiny import gradient_errors, relative_error
from torch import Tensor

WORLDS = (1, 2, 4)
TOLERANCE = 1e-5
CANCELLING = 0.1  # of the largest gradient: smaller ones are the rest of a sum; plain float32 is off by 2e-5 there


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world.write_models(folder)
    world.write_dropping(folder)
    world.write_rows(folder)
    return folder


def test_the_trainers_gradient_is_the_same_for_any_number_of_processes(folder: Path) -> None:
    truth = cache(world.trainer_truth)
    for processes in WORLDS:
        errors = []
        for outcomes in world.run(processes, folder, world.trainer):
            for (combination, kept), (loss, gradients) in zip(world.STEPS, outcomes, strict=True):
                apart = 1 if combination.cross_device or not combination.in_batch else processes
                wanted_loss, wanted = truth(combination, apart, folder)
                error = (abs(loss / wanted_loss - 1), *gradient_errors(gradients, wanted, CANCELLING))
                assert max(error) <= TOLERANCE, (processes, combination, kept, error)
                errors.append(error)
        report("trainer", processes, len(world.STEPS), errors)


def test_with_dropout_any_number_of_processes_takes_the_plain_step_and_trains_the_same_weights(folder: Path) -> None:
    """Ranks cut their shares into chunks of another size, and encode some of them twice."""
    truth = {kind: world.dropping_truth(kind, folder) for kind in world.DROPPING}
    begun, alone = world.dropping_encoder("kernels", folder).backbone.state_dict(), dict[str, Tensor]()
    for processes in WORLDS:
        errors = []
        for *outcomes, (_, weights) in world.run(processes, folder, world.dropping):
            for kind, (loss, gradients) in zip(world.DROPPING, outcomes, strict=True):
                wanted_loss, wanted = truth[kind]
                error = (abs(loss / wanted_loss - 1), *gradient_errors(gradients, wanted, CANCELLING))
                assert max(error) <= TOLERANCE, (processes, kind, error)
                errors.append(error)
            alone = alone or weights
            for name, weight in weights.items():
                assert relative_error(weight, alone[name]) <= TOLERANCE, (processes, name)
            moved = max(relative_error(weight, begun[name]) for name, weight in weights.items())
            assert moved > 1e-2
        report("trainer with dropout", processes, len(world.DROPPING), errors)


def test_the_gradient_under_ddp_is_the_same_for_any_number_of_processes(folder: Path) -> None:
    for processes in WORLDS:
        errors = []
        ranks = world.run(processes, folder, world.ddp)
        for setting, outcomes in zip(world.SETTINGS, zip(*ranks, strict=True), strict=True):
            wanted_loss, wanted = world.ddp_truth(*setting, processes, folder)
            loss = sum(loss for loss, _ in outcomes) / processes
            for _, gradients in outcomes:
                error = (abs(loss / wanted_loss - 1), *gradient_errors(gradients, wanted, CANCELLING))
                assert max(error) <= TOLERANCE, (processes, setting, error)
                errors.append(error)
        report("BiEncoderModel under DDP", processes, len(world.SETTINGS), errors)


def report(what: str, processes: int, settings: int, errors: Sequence[tuple[float, ...]]) -> None:
    loss, parameter, whole = torch.tensor(errors).amax(0).tolist()
    print(
        f"{what}, {processes} processes, {settings} settings: largest relative error of the loss {loss:.1e}, of a "
        f"parameter's gradient {parameter:.1e}, of the whole gradient {whole:.1e}"
    )
