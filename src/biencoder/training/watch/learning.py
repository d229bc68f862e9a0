"""A watch on models that stop learning: vectors become the same, or the loss stays at the level of guessing.

Once in a while it looks at a few embeddings that a step has computed anyway; a look takes some milliseconds. Collapse
is measured against the model at the start of the run, because the vectors of an untrained transformer, and of some
models in wide use, lie close together from the beginning and still learn well.

Shapes: P passages of this rank, N of them in a sample, D dimensions.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from biencoder.model.representations.representation import Representation
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.objective.objective import Objective
from biencoder.training.batch import TrainingBatch

EVERY = 20  # steps from look to look
PASSAGES = 128  # looked at: enough for a mean of 8,000 cosines, few enough for a look to take milliseconds
FEWEST_PASSAGES = 8
QUERIES = 256  # whose candidates are counted

# Contrastive learning spreads vectors out (Wang and Isola 2020: uniformity). If one of these figures shrinks to a
# fraction of its start, the model does not learn. Random models and MiniLM stay far above these limits when they learn.
LEAST_SPREAD = 0.2  # of 1 - mean cosine at the start
LEAST_RANK = 0.25  # of the effective rank at the start
SAME = 1e-4  # 1 - mean cosine: at a temperature of 0.02 it moves a logit by 0.005, and a loss by as little

WINDOW = 50  # steps after warm-up
NEAR_GUESSING = 0.02  # distance from the loss of guessing, as a share of it
FALLING = 0.01  # fall from the first half of the window to the second, as a share of the loss of guessing


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
    """The spread of an even sample of passages; None for too few passages or a vector that is not finite."""
    if len(passages_PD) < FEWEST_PASSAGES:
        return None
    places = np.linspace(0, len(passages_PD) - 1, min(PASSAGES, len(passages_PD))).round()
    sample = passages_PD[torch.from_numpy(places.astype(np.int64)).to(passages_PD.device)].cpu()
    if not bool(sample.isfinite().all()):
        return None
    return Spread(mean_cosine(sample), effective_rank(sample), len(sample))


def what_collapsed(start: Spread, now: Spread) -> str | None:
    """A warning in words; None for a sound model."""
    apart, at_first = 1 - now.mean_cosine, 1 - start.mean_cosine
    if at_first < SAME:
        return "the base model gives all passages the same vector, so there is nothing to learn from"
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
    """Whether the losses over a whole window, each divided by the loss of guessing, stay near 1 and do not fall."""
    if len(ratios) < WINDOW:
        return False
    first, second = np.mean(ratios[: WINDOW // 2]), np.mean(ratios[WINDOW // 2 :])
    return bool(abs((first + second) / 2 - 1) < NEAR_GUESSING and first - second < FALLING)


COLLAPSE_MENDS = (
    "Most often the learning rate is too high: stop, and start again with a fifth of --learning-rate or with a higher "
    "--warmup-ratio. If that does not help, look at the data (biencoder check): if many rows have nearly the same "
    "passage, the model has nothing to tell apart"
)
GUESSING_MENDS = (
    "Either the learning rate is wrong (too high if the loss rose first, too low if it never moved), or the data teach "
    "nothing: queries do not belong to their positives, columns are mixed up, or all texts begin alike and "
    "--passage-max-len cuts them off there. Audit the data with biencoder check"
)


@dataclass
class Watch:
    """What the watch remembers about a run. Checkpoints hold it, so that a resumed run gives the same warnings.

    Attributes:
        start: the first :class:`Spread` of each data set, by its number as text.
        ratios: the loss divided by the loss of guessing, for each data set's last steps.
        warned: the warnings given so far; each is given once.
    """

    start: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)

    def after(
        self,
        step: int,
        batch: TrainingBatch,
        objective: Objective,
        *,
        contrastive: float,
        texts: Representation,
        is_warm: bool,
    ) -> tuple[dict[str, float], list[str]]:
        """Figures of a step, where it is one that is looked at, and warnings, each once a run.

        Args:
            step: counted from 0.
            batch: this rank's.
            objective: the batch's.
            contrastive: the contrastive loss of the step, in nats.
            texts: representations of the batch's queries, then of its passages.
            is_warm: whether the learning rate has reached its peak.
        """
        figures, warnings, now = {}, [], None
        if step % EVERY == 0 or str(batch.data_set) not in self.start:
            now = spread_of(texts[batch.queries :].vectors)
        if now is not None:
            figures = {"mean_cosine": round(now.mean_cosine, 6), "effective_rank": round(now.effective_rank, 3)}
            warnings.append(self.look(batch.data_set, now))
        if is_warm and isinstance(objective, ContrastiveObjective) and batch.queries:
            labels = batch.labels.rows(slice(QUERIES))
            guessing = objective.loss_of_guessing(labels, sum(batch.passage_sizes), sum(batch.query_sizes))
            warnings.append(self.follow(batch.data_set, contrastive, guessing))
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
            guessing: the loss of a model to which all candidates are equally likely, in nats.
        """
        if not (math.isfinite(loss) and guessing > 0):
            return None
        ratios = self.ratios.setdefault(str(data_set), [])
        ratios.append(loss / guessing)
        del ratios[:-WINDOW]
        if not is_guessing(ratios):
            return None
        found = (
            f"for {WINDOW} steps the loss has stayed at the level of guessing among the candidates (now {loss:.3f}, "
            f"guessing {guessing:.3f}): the model does not learn. {GUESSING_MENDS}"
        )
        return self._once(f"guessing {data_set}", found)

    def _once(self, cause: str, warning: str | None) -> str | None:
        if warning is None or cause in self.warned:
            return None
        self.warned.append(cause)
        return warning
