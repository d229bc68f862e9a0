"""A second look where a tenth of the queries cannot tell whether the model got better.

The queries are parted in five. For each part, a model is trained on all other rows, as the run trained its own, and
asked the queries of the part. So every query of the data is asked once, by a model that was trained without it.
"""

import math
import shutil
import time
from dataclasses import dataclass, replace

from biencoder.config import TrainConfig
from biencoder.data.data_sets import rows_to_evaluate_on
from biencoder.data.evaluation.held_out import HeldOut, hold_out_part
from biencoder.data.table import ExampleTable
from biencoder.distributed import rank
from biencoder.report.kept_base import Kept
from biencoder.retrieval.comparing.comparison import SIGNIFICANT, compare, deciding_of
from biencoder.retrieval.comparing.second_look import SecondLook, second_look
from biencoder.retrieval.evaluate import Evaluation
from biencoder.terminal import ProgressLine, say
from biencoder.training.keep_base import keep_base
from biencoder.training.preparation import HELD_OUT_PASSAGES, prepare_model, set_up
from biencoder.training.setup import PARTS, Setup
from biencoder.training.state.output_folder import CROSS_VALIDATION, OutputFolder
from biencoder.training.steps.loop import train_steps
from biencoder.training.steps.start import identity_of, start_or_resume
from biencoder.training.watch.signals import finishing_steps

NEVER = 10**9  # steps until the next evaluation, in a run that is only evaluated before and after


@dataclass(frozen=True)
class CrossValidation:
    """How to train again on parts of the data.

    Attributes:
        asked: the configuration of the run before it was resolved.
        examples: all rows, with those that the run held out.
        base: the digest of the base model's weights.
    """

    asked: TrainConfig
    examples: ExampleTable
    base: str

    def look_again(self, setup: Setup, before: Evaluation, kept: Kept) -> SecondLook | None:
        """Train and evaluate on all parts, if the run's own evaluation cannot tell; None if it can, or if you said no.

        A killed run goes on where it was: each part is a run in a folder of its own below the output folder.
        """
        if not setup.may_look_again:
            return None
        deciding = deciding_of(compare(before, kept.evaluation))
        if deciding.p < SIGNIFICANT:
            return None
        say(
            f"\n{deciding.queries:,} held-out quer{'ies' if deciding.queries > 1 else 'y'} cannot tell whether the "
            f"model got better (p = {deciding.p:.3f}). Cross-validation asks all: {PARTS} more models are each trained "
            "without a part of the queries and asked these."
        )
        setup.optimizer.state.clear()  # its memory holds those of the parts
        return second_look([self._part(number, setup, kept.share) for number in range(PARTS)])

    def _part(self, number: int, setup: Setup, share: float) -> tuple[Evaluation, Evaluation]:
        """The evaluations before and after of a run on all rows but those of one part."""
        began = time.perf_counter()
        asked = self.asked
        held = hold_out_part(
            self.examples,
            seed=asked.seed,
            part=number,
            parts=PARTS,
            passages=HELD_OUT_PASSAGES,
            rows=rows_to_evaluate_on(asked.data_sets, self.examples),
        )
        asked = self._config(number, setup, share, held)
        queries = len(held.collection.query_ids)
        say(f"part {number + 1} of {PARTS}: {len(held.train):,} rows to train on, {queries:,} queries to ask")
        encoder, config, _ = prepare_model(asked, held.train)
        part, progress = set_up(config, encoder, held.train, held.collection)
        folder, identity = OutputFolder(config.output_dir), identity_of(part, self.base)
        if rank() == 0 and folder.holds_another_run(identity):  # a share that the run chose before it was killed
            shutil.rmtree(folder.path)
        start_or_resume(part, progress, folder, identity, began)
        with finishing_steps(), ProgressLine(part.total_steps, "train", done=progress.step) as line:
            train_steps(part, progress, line)
        assert progress.before is not None
        return progress.before, keep_base(part, progress).evaluation

    def _config(self, number: int, setup: Setup, share: float, held: HeldOut) -> TrainConfig:
        """The run's own settings, for fewer rows and without anything that only its report needs."""
        steps = self.asked.max_steps
        if steps is not None:
            steps = math.ceil(steps * len(held.train) / len(setup.examples))
        return replace(
            self.asked,
            output_dir=setup.folder / CROSS_VALIDATION / str(number + 1),
            max_steps=steps,
            learning_rate=setup.config.learning_rate,
            keep_base=share,
            guard_data=None,
            general_guard=False,
            eval_steps=NEVER,
            cross_validate=False,
            log_to=None,
        )


def forget_parts(setup: Setup) -> None:
    """Remove the runs on parts of the data, when the run needs them no more; for rank 0."""
    shutil.rmtree(setup.folder / CROSS_VALIDATION, ignore_errors=True)
