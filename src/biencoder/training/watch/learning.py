"""A watch on models that stop learning: vectors that become the same, and a loss that is no better than guessing.

It looks at a few embeddings that a step has computed anyway, once in a while, which takes some milliseconds. What
counts as collapsed is relative to what the model was at the start of the run. The vectors of an untrained transformer,
and of some that are in wide use, lie close together from the beginning, and learn none the worse for it.

Shapes: P passages of this rank, N of them that are looked at, D dimensions.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from biencoder.objective.objective import Objective
from biencoder.objective.similarity import AnyObjective
from biencoder.training.batch import TrainingBatch
from biencoder.training.gradcache import StepLosses

EVERY = 20  # steps from look to look
PASSAGES = 128  # looked at: enough for a mean of 8,000 cosines, few enough for a look to take milliseconds
FEWEST_PASSAGES = 8
QUERIES = 256  # whose candidates are counted

# Contrastive learning spreads vectors out (Wang and Isola 2020: uniformity), so that either of these shrinking to a
# part of what it was is no learning. Random models and MiniLM stay far above when they learn.
LEAST_SPREAD = 0.2  # of 1 - mean cosine at the start
LEAST_RANK = 0.25  # of the effective rank at the start
SAME = 1e-4  # 1 - mean cosine: at a temperature of 0.02 it moves a logit by 0.005, and a loss by as little

WINDOW = 50  # steps after warm-up
NEAR_GUESSING = 0.02  # of the loss of guessing
FALLING = 0.01  # of it, from the first half of the window to the second


class Spread(NamedTuple):
    """How far apart vectors lie.

    Attributes:
        mean_cosine: of two different ones of them.
        effective_rank: in how many dimensions they lie.
        passages: how many were looked at; figures of different numbers do not compare.
    """

    mean_cosine: float
    effective_rank: float
    passages: int


def mean_cosine(vectors_ND: Tensor) -> float:
    """The mean cosine of two different rows, over all pairs of them."""
    count = len(vectors_ND)
    whole = torch.nn.functional.normalize(vectors_ND.double(), dim=1).sum(dim=0).square().sum()
    return float((whole - count) / (count * (count - 1)))


def effective_rank(vectors_ND: Tensor) -> float:
    """The exponential of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007).

    From 1, where all rows are multiples of one, to min(N, D), where all directions count the same.
    """
    rows = torch.nn.functional.normalize(vectors_ND.double(), dim=1)
    values = torch.linalg.eigvalsh(rows @ rows.T).clamp(min=0).sqrt()
    shares = values / values.sum()
    return math.exp(float(torch.special.entr(shares).sum()))


def spread_of(passages_PD: Tensor) -> Spread | None:
    """That of some of the passages, evenly taken; None where there are too few, or where a vector is not finite."""
    if len(passages_PD) < FEWEST_PASSAGES:
        return None
    places = np.linspace(0, len(passages_PD) - 1, min(PASSAGES, len(passages_PD))).round()
    sample = passages_PD[torch.from_numpy(places.astype(np.int64)).to(passages_PD.device)].cpu()
    if not bool(sample.isfinite().all()):
        return None
    return Spread(mean_cosine(sample), effective_rank(sample), len(sample))


def what_collapsed(start: Spread, now: Spread) -> str | None:
    """What the figures say of the model, in words; None where it is sound."""
    apart, at_first = 1 - now.mean_cosine, 1 - start.mean_cosine
    if at_first < SAME:
        return "the base model gives all passages the same vector, from which nothing can be learned"
    if apart < max(SAME, LEAST_SPREAD * at_first):
        return (
            f"the vectors of different passages become the same: their mean cosine is {now.mean_cosine:.4f} and was "
            f"{start.mean_cosine:.4f} at the start"
        )
    if now.passages == start.passages and now.effective_rank < LEAST_RANK * start.effective_rank:
        return (
            f"the vectors collapse into few dimensions: their effective rank is {now.effective_rank:.1f} and was "
            f"{start.effective_rank:.1f} at the start"
        )
    return None


def is_guessing(ratios: list[float]) -> bool:
    """Whether losses, each over that of guessing, lie at 1 over a whole window and do not fall."""
    if len(ratios) < WINDOW:
        return False
    first, second = np.mean(ratios[: WINDOW // 2]), np.mean(ratios[WINDOW // 2 :])
    return bool(abs((first + second) / 2 - 1) < NEAR_GUESSING and first - second < FALLING)


COLLAPSE_MENDS = (
    "Most often the learning rate is too high: stop, and start again with a fifth of --learning-rate, or a longer "
    "--warmup-ratio. If that does not help, look at the data (biencoder check): many rows with nearly the same passage "
    "leave nothing to tell apart"
)
GUESSING_MENDS = (
    "Either the learning rate is wrong (after a rise of the loss: too high; from the first step: too low), or the data "
    "teach nothing: queries that do not belong to their positives, columns mixed up, or texts that all begin alike and "
    "are cut off there by --passage-max-len. biencoder check audits them"
)


@dataclass
class Watch:
    """What the watch remembers of a run; it is kept in checkpoints, so that a resumed run says the same.

    Attributes:
        start: the first :class:`Spread` of each data set, by its number as text.
        ratios: the loss over that of guessing, of each data set's last steps.
        warned: what has been said, which is said once.
    """

    start: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)

    def after(
        self, step: int, batch: TrainingBatch, objective: AnyObjective, losses: StepLosses, *, is_warm: bool
    ) -> tuple[dict[str, float], list[str]]:
        """Figures of a step, where it is one that is looked at, and warnings, each once a run.

        Args:
            step: counted from 0.
            batch: this rank's.
            objective: the batch's.
            losses: of the step, and its embeddings.
            is_warm: whether the learning rate has reached its peak.
        """
        figures, warnings, now = {}, [], None
        if step % EVERY == 0 or str(batch.data_set) not in self.start:
            now = spread_of(losses.vectors[batch.queries :])
        if now is not None:
            figures = {"mean_cosine": round(now.mean_cosine, 6), "effective_rank": round(now.effective_rank, 3)}
            warnings.append(self.look(batch.data_set, now))
        if is_warm and isinstance(objective, Objective) and batch.queries:
            labels = batch.labels.rows(slice(QUERIES))
            guessing = objective.loss_of_guessing(labels, sum(batch.passage_sizes), sum(batch.query_sizes))
            warnings.append(self.follow(batch.data_set, losses.contrastive, guessing))
        return figures, [warning for warning in warnings if warning is not None]

    def look(self, data_set: int, now: Spread) -> str | None:
        """A warning about the vectors of a batch of ``data_set``, or None."""
        start = Spread(*self.start.setdefault(str(data_set), list(now)))  # type: ignore[arg-type]
        found = what_collapsed(start, now)
        return self._once("collapse", found and f"{found}. {COLLAPSE_MENDS}")

    def follow(self, data_set: int, loss: float, guessing: float) -> str | None:
        """A warning about the contrastive losses of ``data_set``, of which this is one more, or None.

        Args:
            data_set: its number.
            loss: of a batch, in nats.
            guessing: that of a model that finds all candidates equally likely, in nats.
        """
        if not (math.isfinite(loss) and guessing > 0):
            return None
        ratios = self.ratios.setdefault(str(data_set), [])
        ratios.append(loss / guessing)
        del ratios[:-WINDOW]
        if not is_guessing(ratios):
            return None
        found = (
            f"for {WINDOW} steps the loss has been that of guessing among the candidates (now {loss:.3f}, guessing "
            f"{guessing:.3f}): the model does not learn. {GUESSING_MENDS}"
        )
        return self._once(f"guessing {data_set}", found)

    def _once(self, cause: str, warning: str | None) -> str | None:
        if warning is None or cause in self.warned:
            return None
        self.warned.append(cause)
        return warning
