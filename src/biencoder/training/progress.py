"""How far a training run has come: all that changes from step to step, but for weights and moments."""

from collections import deque
from dataclasses import dataclass, field

from biencoder.data.plan.sampling import Sampler
from biencoder.retrieval.evaluate import Evaluation
from biencoder.training.batch import Batcher
from biencoder.training.watch.learning import Watch

SHOWN_STEPS = 20


@dataclass
class Skipped:
    """Steps that were not taken because their numbers were not finite.

    Attributes:
        total: in the whole run.
        in_a_row: since the last step that was taken.
        overflows: those of which only the scaled gradient was too large for float16; they do not count above.
    """

    total: int = 0
    in_a_row: int = 0
    overflows: int = 0


@dataclass
class Spent:
    """Seconds that parts of the run have taken in this process, from which the time of the whole run is estimated.

    Attributes:
        evaluation: for one evaluation, the last one.
        guards: for the evaluations on all guard data.
        mining: for one search for hard negatives.
        began: when the run began, on the clock of ``time.perf_counter``; None in a process that resumes a run.
    """

    evaluation: float = 0.0
    guards: float = 0.0
    mining: float = 0.0
    began: float | None = None


@dataclass
class TrainingProgress:
    """Where a training run stands.

    Attributes:
        sampler: from a step to the rows of its global batch; clusters and mined negatives change it.
        batcher: from those rows to this rank's tokens; mined negatives and smaller chunks change it.
        keep_tokens: see :func:`~biencoder.training.gradcache.accumulate_gradients`.
        held_at_most: see :func:`~biencoder.training.gradcache.accumulate_gradients`.
        step: optimizer steps done.
        before: the evaluation of the model as it came.
        guards_before: the evaluation of the model as it came on each of the guards.
        best: the best evaluation since training began.
        best_step: the step of the best evaluation.
        continued: what the run took over from the one that it continues, in a sentence; empty if it continues none.
        recent: loss, queries and seconds of the last steps; their means are shown.
        skipped: how many steps were skipped.
        watch: looks for signs that the model does not learn.
        spent: what the parts of the run have taken so far; no checkpoint holds it, because it differs from run to run.
    """

    sampler: Sampler
    batcher: Batcher
    keep_tokens: int
    held_at_most: int
    step: int = 0
    before: Evaluation | None = None
    guards_before: dict[str, Evaluation] = field(default_factory=dict)
    best: Evaluation | None = None
    best_step: int = 0
    continued: str = ""
    recent: deque[tuple[float, int, float]] = field(default_factory=lambda: deque(maxlen=SHOWN_STEPS))
    skipped: Skipped = field(default_factory=Skipped)
    watch: Watch = field(default_factory=Watch)
    spent: Spent = field(default_factory=Spent)
