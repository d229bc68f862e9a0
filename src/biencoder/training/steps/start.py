"""The start of a run: its first evaluations, or the checkpoint from which it goes on."""

import socket
import time
from pathlib import Path
from typing import Any

from biencoder.config import data_sets_of
from biencoder.data.data_sets import settings_of
from biencoder.data.files.hub_copy import is_on_hub, pinned
from biencoder.distributed import barrier, broadcast_object, rank, world_size
from biencoder.errors import UserError
from biencoder.terminal import say
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.state.checkpoint import step_of
from biencoder.training.state.held_out_corpus import keep_corpus
from biencoder.training.state.output_folder import OutputFolder
from biencoder.training.steps.continuing import take_over
from biencoder.training.steps.evaluation import evaluate_and_keep_best, evaluate_guards
from biencoder.training.steps.snapshot import restore

SEEN_WITHIN = 90.0  # seconds: a network file system may show a new file to other nodes after a minute


def identity_of(setup: Setup, base: str) -> dict[str, Any]:
    """What makes two runs the same; ``base`` is the digest of the base model's weights."""
    config = setup.config
    return {
        "config": config.to_dict(),
        "data_sets": settings_of(data_sets_of(config.train_data)),
        "data": setup.examples.fingerprint,
        "hub_data": [pinned(path) for data_set in config.data_sets for path in data_set.path if is_on_hub(path)],
        "evaluation": " ".join(each.fingerprint for each in (setup.collection, *setup.guards.values())),
        "model": base,
        "guide": setup.guide and setup.guide.encoder.fingerprint,
        "world_size": world_size(),
    }


def start_or_resume(
    setup: Setup, progress: TrainingProgress, folder: OutputFolder, identity: dict[str, Any], began: float
) -> None:
    """Go on from the newest checkpoint in the folder; without one, mark it as this run's and evaluate the base.

    Raises:
        UserError: the folder holds another run.
    """
    if rank() == 0:
        folder.refuse_other_run(identity)  # another run may have begun and ended there meanwhile
    newest = broadcast_object(folder.newest_checkpoint() if rank() == 0 else None)
    if rank() == 0:
        folder.sweep(0 if newest is None else step_of(newest))
    if newest is not None:
        _refuse_unshared(newest)
        restore(setup, progress, newest)
        return
    if rank() == 0:
        folder.start(identity, setup.config.to_yaml())
        if setup.config.eval_data is None:
            keep_corpus(setup.folder, setup.collection)
    barrier()
    _refuse_unshared(folder.marker)
    progress.spent.began = began
    evaluate_and_keep_best(setup, progress)
    guards_began = time.perf_counter()
    progress.guards_before = evaluate_guards(setup, step=0)
    progress.spent.guards = time.perf_counter() - guards_began
    run = setup.config.continue_from
    if run is not None:
        progress.continued = f"It continues {run}, {take_over(setup, run)}."
        say(progress.continued)


def _refuse_unshared(path: Path) -> None:
    """Stop if this rank cannot see what rank 0 wrote: it would need that at the end of the run, or to resume.

    Raises:
        UserError: the output folder is not the same for all ranks.
    """
    until = time.monotonic() + SEEN_WITHIN
    while not path.exists():
        if time.monotonic() > until:
            raise UserError(
                f"{path}: process 0 wrote this, and process {rank()} on {socket.gethostname()} does not see it; name "
                "an --output-dir on a file system that all nodes share"
            )
        time.sleep(0.5)
