"""How long the whole run takes and how much memory: said once, as soon as a few steps have been measured."""

import time
from collections.abc import Iterator

from biencoder.device.allocator import held_bytes, resident_bytes
from biencoder.device.choice import facts
from biencoder.distributed import rank
from biencoder.retrieval.evaluate import texts_to_encode
from biencoder.terminal import duration, say
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import PARTS, Setup
from biencoder.training.steps.evaluation import evaluation_steps

WARM_UP = 2  # steps of a process that do not count: the first ones compile products for each number of rows
FEWEST, MOST = 3, 10  # steps to measure
ENOUGH = 15.0  # seconds of measured steps with which the fewest are enough
SHORT = 10  # steps; a run with fewer is over before its estimate helps anyone
SAMPLED = 16  # steps to come whose tokens are counted
CHOOSING = 3  # evaluations on a guard with which a share of the base is found, beside the one that comes anyway
SAMPLING = 0.5  # seconds that the counting may take, once


class Forecast:
    """Measures the first steps of a process, and says what the run takes.

    A step takes as long as its tokens take, and steps differ in tokens. So the tokens of a few of the steps to come are
    counted before training, and the speed is measured in tokens a second.

    Args:
        setup: of the run.
        progress: before the first step that is measured, with the batches that are about to be trained on.
        shortest: nothing is measured if fewer steps are left.
    """

    def __init__(self, setup: Setup, progress: TrainingProgress, shortest: int = SHORT) -> None:
        self._setup, self._progress = setup, progress
        left = setup.total_steps - progress.step
        self._wanted = min(MOST, max(FEWEST, left // 10))
        self._is_due = rank() == 0 and left >= shortest
        self._seen = self._steps = self._tokens = 0
        self._seconds = 0.0
        self._to_come = _tokens_of_some_steps(setup, progress) if self._is_due else []

    def after_step(self, tokens: int, seconds: float) -> None:
        """Count a step of this process with its tokens on this rank; say the estimate when enough are counted."""
        if not self._is_due:
            return
        self.measure(tokens, seconds)
        if self._steps >= self._wanted or (self._steps >= FEWEST and self._seconds >= ENOUGH):
            self._is_due = False
            began = self._progress.spent.began
            say(self.said(None if began is None else time.perf_counter() - began))

    def measure(self, tokens: int, seconds: float) -> None:
        """Count a step, unless it is one of the first."""
        self._seen += 1
        if self._seen > WARM_UP:
            self._steps, self._tokens, self._seconds = self._steps + 1, self._tokens + tokens, self._seconds + seconds

    def said(self, so_far: float | None, *, is_under_way: bool = True) -> str:
        """The estimate in one line.

        Args:
            so_far: seconds that the run takes up to the present step; None if other processes took a part of them.
            is_under_way: those seconds are over.
        """
        setup, progress = self._setup, self._progress
        more = evaluations_left(setup, progress)
        evaluating = more * progress.spent.evaluation + self._guards() + self._choosing()
        mining = _searches_left(setup, progress) * progress.spent.mining
        left = self._training() + evaluating + mining
        if so_far is None:
            whole, spans = left, f"about {duration(left)} left"
        else:
            whole, spans = so_far + left, f"about {duration(so_far + left)} in all"
            spans += f", {duration(left)} of it left" if is_under_way else ""
            evaluating += progress.spent.evaluation + self._guards()  # before the first step
        evaluations = f"{more} more evaluation{'s' * (more != 1)}"
        again = f"; about {duration(self._parts())} more if the evaluation cannot tell" if setup.may_look_again else ""
        return (
            f"estimate: {spans}; {evaluating / whole:.0%} of it for evaluations ({evaluations} of about "
            f"{duration(progress.spent.evaluation)}){again}; {memory_said(setup, progress)}"
        )

    def _parts(self) -> float:
        """Seconds of a cross-validation: runs on all parts of the data but one, with two or three evaluations each."""
        steps = self._setup.total_steps * sum(self._to_come) / len(self._to_come) * self._seconds / max(1, self._tokens)
        evaluations = 2 + self._setup.config.averages
        return (PARTS - 1) * steps + PARTS * evaluations * self._progress.spent.evaluation

    def _training(self) -> float:
        """Seconds of the steps that are left."""
        steps = self._setup.total_steps - self._progress.step
        return steps and steps * sum(self._to_come) / len(self._to_come) * self._seconds / max(1, self._tokens)

    def _guards(self) -> float:
        """Seconds of one evaluation on all guard data."""
        setup, spent = self._setup, self._progress.spent
        if spent.guards or not setup.guards:
            return spent.guards
        return spent.evaluation * sum(map(texts_to_encode, setup.guards.values())) / texts_to_encode(setup.collection)

    def _choosing(self) -> float:
        """Seconds of evaluations on the first guard, by which the run chooses how much of the base to keep."""
        if not self._setup.config.chooses_share:
            return 0.0
        texts = [texts_to_encode(each) for each in self._setup.guards.values()]
        return CHOOSING * self._guards() * texts[0] / sum(texts)


def evaluations_left(setup: Setup, progress: TrainingProgress) -> int:
    """How many evaluations come after the present step, without those on guard data."""
    total, every = setup.total_steps, evaluation_steps(setup, progress)
    return total // every - progress.step // every + (total % every > 0) + setup.config.averages


def memory_said(setup: Setup, progress: TrainingProgress) -> str:
    """The most memory that this process has taken, and what it may take, in words."""
    device = setup.encoder.device
    peak, what, most = facts(device).peak(), "GPU memory", setup.config.memory_budget or 0
    if device.type == "cpu":
        what, most = "memory", progress.held_at_most + resident_bytes() - held_bytes()  # mapped files come on top
    return f"{what}: {peak / 1e9:.2f} GB so far" + (f", at most {most / 1e9:.2f} GB" if most > peak else "")


def spread(numbers: range, count: int) -> Iterator[int]:
    """At most ``count`` of the numbers, evenly spread."""
    count = min(count, len(numbers))
    return (numbers[(2 * i + 1) * len(numbers) // (2 * count)] for i in range(count))


def _tokens_of_some_steps(setup: Setup, progress: TrainingProgress) -> list[int]:
    """Tokens of this rank's part of steps that are left; of all of them if they are few."""
    deadline = time.perf_counter() + SAMPLING
    counted: list[int] = []
    for step in spread(range(progress.step, setup.total_steps), SAMPLED):
        if counted and time.perf_counter() > deadline:
            break
        counted.append(progress.batcher(progress.sampler.plan(step)).tokens)
    return counted


def _searches_left(setup: Setup, progress: TrainingProgress) -> int:
    """How often the run searches for hard negatives after the present step."""
    refresh = setup.config.refresh_negatives
    if not setup.config.mine_negatives or refresh is None:
        return 0
    every = refresh * progress.sampler.steps_per_epoch
    return (setup.total_steps - 1) // every - progress.step // every
