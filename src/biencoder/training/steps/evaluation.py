"""Evaluations within a run: before the first step, now and then, and at the end. The best weights are kept."""

import time
from collections.abc import Mapping

from biencoder.data.files.beir import Collection
from biencoder.device.allocator import give_back
from biencoder.device.choice import facts
from biencoder.model.parallel.sharing import told
from biencoder.retrieval.evaluate import DECIDING, Evaluation, evaluate, texts_to_encode
from biencoder.terminal import ProgressLine, say
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.state.checkpoint import save_best, trained_state
from biencoder.training.steps.metrics_file import GUARDS, write_metrics
from biencoder.training.steps.nonfinite import refuse_ruined_weights

LEAST_INTERVAL = 25  # steps


def evaluate_and_keep_best(setup: Setup, progress: TrainingProgress) -> None:
    """Evaluate; keep the weights when they are the best so far."""
    refuse_ruined_weights(setup, progress)
    began = time.perf_counter()
    evaluation = evaluate_on(setup, setup.collection)
    progress.spent.evaluation = time.perf_counter() - began
    spent = {"seconds": round(progress.spent.evaluation, 4), "peak_bytes": facts(setup.encoder.device).peak()}
    write_metrics(setup, {"step": progress.step, "evaluation": evaluation.metrics} | spent)
    say(f"step {progress.step:,} of {setup.total_steps:,}: {DECIDING} {evaluation.metrics[DECIDING]:.4f}")
    if progress.step == 0:
        progress.before = evaluation
        return
    if progress.best is None or evaluation.metrics[DECIDING] > progress.best.metrics[DECIDING]:
        progress.best, progress.best_step = evaluation, progress.step
        if setup.takes_part:
            save_best(setup.checkpoints, progress.step, trained_state(setup.encoder))


def evaluation_steps(setup: Setup, progress: TrainingProgress) -> int:
    """Steps from one evaluation to the next; one more comes after the last step."""
    return setup.config.eval_steps or usual_interval(progress.sampler.steps_per_epoch, setup.total_steps)


def usual_interval(steps_per_epoch: int, total: int) -> int:
    """An epoch; where epochs are short and evaluations would take most of the run, an equal part of the run."""
    return max(steps_per_epoch, -(-total // max(1, total // LEAST_INTERVAL)))


def evaluate_on(setup: Setup, collection: Collection) -> Evaluation:
    """The model as it is, on a collection; all ranks compute, and what the first one found holds for all."""
    return told(_evaluate(setup, collection))


def evaluate_guards(setup: Setup, step: int, known: Mapping[str, Evaluation] | None = None) -> dict[str, Evaluation]:
    """The model as it is after a step, on each guard; those that are ``known`` are not evaluated again."""
    found = dict(known or {})
    for name, collection in setup.guards.items():
        found[name] = found[name] if name in found else evaluate_on(setup, collection)
    guards = {name: found[name] for name in setup.guards}
    if guards:
        write_metrics(setup, {"step": step, GUARDS: {name: each.metrics for name, each in guards.items()}})
    return guards


def _evaluate(setup: Setup, collection: Collection) -> Evaluation:
    give_back(beyond=0)  # an evaluation takes other sizes than training, which would lie beside the free ones
    with ProgressLine(texts_to_encode(collection), "evaluate") as line:
        dims = (setup.config.dims or ())[1:]
        shown = collection is setup.collection  # the report shows no single queries of guard data
        evaluation = evaluate(setup.encoder, collection, dims=dims, progress=line.update, with_findings=shown)
    give_back(beyond=0)  # or each evaluation would leave the process a little larger
    return evaluation
