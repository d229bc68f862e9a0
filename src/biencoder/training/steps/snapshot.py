"""A run to a checkpoint, and back."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from biencoder.distributed import barrier, rank, world_size
from biencoder.files import sync_file
from biencoder.retrieval.evaluate import Evaluation
from biencoder.terminal import say
from biencoder.training.optimizer import optimizer_state, restore_optimizer
from biencoder.training.progress import Skipped, TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.state.checkpoint import (
    Checkpoint,
    load_checkpoint,
    prune,
    restore_state,
    save_checkpoint,
    trained_state,
)
from biencoder.training.steps.metrics_file import forget_metrics_after, last_evaluation_seconds
from biencoder.training.steps.nonfinite import refuse_ruined_weights
from biencoder.training.watch.learning import Watch


def save(setup: Setup, progress: TrainingProgress) -> None:
    """Write a checkpoint and remove those that are no longer needed."""
    refuse_ruined_weights(setup, progress)
    if not setup.takes_part:
        return
    if rank() == 0:
        sync_file(setup.folder / "metrics.jsonl")  # a checkpoint must not outlive the lines of its steps
    save_checkpoint(
        setup.checkpoints,
        Checkpoint(
            step=progress.step,
            weights=trained_state(setup.encoder),
            optimizer=optimizer_state(setup.encoder, setup.optimizer),
            state=_state(setup, progress),
        ),
    )
    if rank() == 0:
        prune(setup.checkpoints, setup.config.keep_checkpoints)


def restore(setup: Setup, progress: TrainingProgress, path: Path) -> None:
    """Put weights, moments and progress back to where the checkpoint was written."""
    checkpoint = load_checkpoint(path)
    restore_state(setup.encoder, checkpoint.weights)
    restore_optimizer(setup.encoder, setup.optimizer, checkpoint.optimizer)
    state = checkpoint.state
    progress.step, progress.best_step = checkpoint.step, state["best_step"]
    progress.continued = state.get("continued", "")
    progress.before, progress.best = (_evaluation(state[name]) for name in ("before", "best"))
    progress.guards_before = {folder: Evaluation.restored(saved) for folder, saved in state["guards_before"].items()}
    before = state.get("world_size", world_size())
    if before == world_size() and state["config"]["memory_budget"] == setup.config.to_dict()["memory_budget"]:
        # The same chunks: sums are rounded in their order.
        progress.keep_tokens = state["tokens"]["keep"]
        progress.batcher = replace(progress.batcher, chunk_tokens=state["tokens"]["chunk"])
    if setup.scaler.is_enabled():
        setup.scaler.load_state_dict(state["loss_scale"])
    progress.skipped, progress.watch = Skipped(**state.get("skipped", {})), Watch(**state.get("watch", {}))
    if rank() == 0:
        forget_metrics_after(setup.folder / "metrics.jsonl", progress.step)
        progress.spent.evaluation = last_evaluation_seconds(setup.folder / "metrics.jsonl")
    barrier()
    say(f"going on from step {progress.step:,} of {setup.total_steps:,} ({path})")
    if before != world_size():
        say(
            f"the number of processes was {before} and is {world_size()}: batches and negatives stay the same, and "
            "sums are rounded in another order"
        )


def _state(setup: Setup, progress: TrainingProgress) -> dict[str, Any]:
    """What a checkpoint says beside tensors; all random numbers are a function of seed and step."""
    steps_per_epoch = progress.sampler.steps_per_epoch
    return {
        "config": setup.config.to_dict(),
        "data": setup.examples.fingerprint,
        "step": progress.step,
        "sampler": {
            "seed": setup.config.seed,
            "epoch": progress.step // steps_per_epoch,
            "step_in_epoch": progress.step % steps_per_epoch,
        },
        "total_steps": setup.total_steps,
        "world_size": world_size(),
        "tokens": {"chunk": progress.batcher.chunk_tokens, "keep": progress.keep_tokens},
        "before": progress.before and asdict(progress.before),
        "guards_before": {folder: asdict(evaluation) for folder, evaluation in progress.guards_before.items()},
        "best": progress.best and asdict(progress.best),
        "best_step": progress.best_step,
        "continued": progress.continued,
        "skipped": asdict(progress.skipped),
        "loss_scale": setup.scaler.state_dict(),
        "watch": asdict(progress.watch),
    }


def _evaluation(saved: dict[str, Any] | None) -> Evaluation | None:
    return None if saved is None else Evaluation.restored(saved)
