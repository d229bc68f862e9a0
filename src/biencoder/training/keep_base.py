"""How much of its base the saved model keeps: a share that you name, or the least that a guard asks for.

Weights between those of a base and of its tuned model lose little of what was learned, and much less of what was known
(WiSE-FT, Wortsman et al. 2022; LM-Cocktail, Xiao et al. 2023).
"""

from math import ceil, sqrt

import torch
from torch import Tensor

from biencoder.model.merging.merge import mix_in
from biencoder.model.parallel.sharded import own
from biencoder.report.kept_base import Kept
from biencoder.retrieval.evaluate import DECIDING, Evaluation
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.steps.evaluation import evaluate_on

SHARES = tuple(tenth / 10 for tenth in range(10))  # of the base, from which one is chosen
TOLERATED = 0.005  # what a guard may lose of DECIDING, which readers would not notice
LEAST_GAIN = 0.75  # share of what was gained on the evaluation data that must be left


def keep_base(setup: Setup, progress: TrainingProgress) -> Kept:
    """Average the weights of the model, which are the best tuned ones, with those of its base.

    Raises:
        UserError: the base cannot be read any more.
    """
    share, tuned = setup.config.keep_base, progress.best
    assert tuned is not None
    if isinstance(share, str):
        return _Choice(setup, progress).made() if setup.config.chooses_share else Kept(0.0, tuned, tuned)
    if not share:
        return Kept(share, tuned, tuned)
    mix_in(setup.encoder, setup.config.model, setup.base_head, share)
    return Kept(share, tuned, evaluate_on(setup, setup.collection))


class _Choice:
    """About the least share of the base with which the first guard loses no more than :data:`TOLERATED`.

    The guard decides, because it is cheap to evaluate. If more than a quarter of the gain on the evaluation data would
    be lost, half the share is kept, and so on.
    """

    def __init__(self, setup: Setup, progress: TrainingProgress) -> None:
        assert progress.before is not None
        assert progress.best is not None
        self.setup = setup
        self.before, self.tuned = progress.before, progress.best
        self.guard, self.collection = next(iter(setup.guards.items()))
        self.known = progress.guards_before[self.guard].metrics[DECIDING]
        setup.optimizer.zero_grad(set_to_none=True)  # its memory holds the copy below
        self.weights = _copy(setup)
        self.share = 0.0  # of the base in the model as it is
        self.on_guard: dict[float, Evaluation] = {}
        self.on_data: dict[float, Evaluation] = {0.0: self.tuned}

    def made(self) -> Kept:
        share = asked = self._least_for_the_guard()
        while share and self._gain(share) < LEAST_GAIN * self._gain(0.0):
            share = SHARES[SHARES.index(share) // 2]
        self._take(share)
        return Kept(
            share,
            self.tuned,
            self.on_data[share],
            guards={self.guard: self._guarded(share)},
            why=self._why(asked, share),
            tried=self._tried(),
        )

    def _least_for_the_guard(self) -> float:
        """Between a share that loses too much and one that does not, where a curve says; two or three tries do."""
        too_few, enough = -1, len(SHARES) - 1
        number = 0
        while SHARES[number] not in self.on_guard:
            if self._loss(SHARES[number]) > TOLERATED:
                too_few = number
            else:
                enough = number
            tuned = _most_tuned([(1 - share, self._loss(share)) for share in self.on_guard])
            number = min(max(ceil((1 - tuned) * len(SHARES)), too_few + 1), enough)
        return SHARES[number]

    def _loss(self, share: float) -> float:
        return self.known - self._guarded(share).metrics[DECIDING]

    def _gain(self, share: float) -> float:
        if share not in self.on_data:
            self._take(share)
            self.on_data[share] = evaluate_on(self.setup, self.setup.collection)
        return self.on_data[share].metrics[DECIDING] - self.before.metrics[DECIDING]

    def _guarded(self, share: float) -> Evaluation:
        if share not in self.on_guard:
            self._take(share)
            self.on_guard[share] = evaluate_on(self.setup, self.collection)
        return self.on_guard[share]

    @torch.no_grad()
    def _take(self, share: float) -> None:
        """Make the model the mixture with ``share`` of the base."""
        if share == self.share:
            return
        encoder = self.setup.encoder
        for name, tensor in encoder.state_dict().items():
            own(tensor).copy_(self.weights[name])
        if share:
            mix_in(encoder, self.setup.config.model, self.setup.base_head, share)
        self.share = share

    def _why(self, asked: float, share: float) -> str:
        alone, left = -self._loss(0.0), -self._loss(share)
        if not asked:
            return f"It keeps none of the base: on {self.guard} it changed by {alone:+.4f} {DECIDING}."
        why = (
            f"It keeps {share:g} of the base: on {self.guard} the tuned model alone changed by {alone:+.4f} "
            f"{DECIDING}, and this one by {left:+.4f}."
        )
        if share < asked:
            why += f" A share of {asked:g} would have lost more than a quarter of the gain."
        return why

    def _tried(self) -> list[dict[str, float]]:
        tried = []
        for share in sorted(self.on_guard.keys() | self.on_data):
            row = {"share": share}
            for name, found in (("guard", self.on_guard), ("evaluation", self.on_data)):
                if share in found:
                    row[name] = found[share].metrics[DECIDING]
            tried.append(row)
        return tried


def _most_tuned(tries: list[tuple[float, float]]) -> float:
    """The share of the tuned weights at which a guard is expected to lose :data:`TOLERATED`.

    The base itself loses nothing, and a little of the tuned weights often gains. So the loss at a share t is taken to
    be ``a t² - b t``, through the last two tries; after one try, ``a t²``.

    Args:
        tries: shares of the tuned weights, with what the guard loses there.
    """
    (t, loss), *earlier = reversed(tries[-2:])
    a, b = loss / t**2, 0.0
    for other, other_loss in earlier:
        a = (loss / t - other_loss / other) / (t - other)
        b = a * t - loss / t
    return (b + sqrt(b * b + 4 * a * TOLERATED)) / (2 * a) if a > 0 else 1.0


def _copy(setup: Setup) -> dict[str, Tensor]:
    return {name: own(tensor).clone().cpu() for name, tensor in setup.encoder.state_dict().items()}
