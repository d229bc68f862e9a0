"""The training loop. One optimizer step reads from top to bottom in :func:`train_steps`."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, NoReturn

import torch

from biencoder.data.files.beir import Collection
from biencoder.device.allocator import give_back
from biencoder.distributed import barrier, broadcast_object, rank, sum_gradients
from biencoder.errors import Stopped
from biencoder.files import sync_file
from biencoder.retrieval.evaluate import DECIDING, Evaluation, evaluate, texts_to_encode
from biencoder.terminal import Progress, say
from biencoder.training.batch import TrainingBatch
from biencoder.training.gradcache import StepLosses
from biencoder.training.job import Job
from biencoder.training.memory.smaller_chunks import accumulate_within_memory
from biencoder.training.optimizer import learning_rate_at, optimizer_state
from biencoder.training.sources.clusters import use_clusters
from biencoder.training.sources.negatives import use_hard_negatives
from biencoder.training.state.checkpoint import (
    Checkpoint,
    checkpoint_path,
    prune,
    save_best,
    save_checkpoint,
    trained_state,
)
from biencoder.training.state.metrics_file import log_step, write_metrics
from biencoder.training.watch.nonfinite import count_or_stop, find_trouble, refuse_ruined_weights
from biencoder.training.watch.signals import stop_asked

logger = logging.getLogger(__name__)


def train_steps(job: Job, progress: Progress) -> None:
    """Take the steps that are left, in batches of similar rows and with the hard negatives that are due."""
    use_clusters(job)
    while job.step < job.total_steps:
        until = use_hard_negatives(job)
        _train_until(until, job, progress)


def _train_until(step: int, job: Job, progress: Progress) -> None:
    config, encoder = job.config, job.encoder
    parameters = [p for p in encoder.backbone.parameters() if p.requires_grad]
    encoder.backbone.train()
    began = time.perf_counter()
    for batch in _prepared_ahead(job, step):
        losses = accumulate_within_memory(job, batch)
        sum_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        trouble = find_trouble(job, losses, norm)
        rate = _set_learning_rate(job)
        if trouble is None:
            job.optimizer.step()
        job.optimizer.zero_grad()
        more = _watch(job, batch, losses) | ({} if trouble is None else {"nonfinite": trouble.to_json()})
        job.step += 1
        log_step(job, batch, losses, norm, rate, time.perf_counter() - began, progress, more)
        del losses  # and its embeddings, before the next step makes its own
        count_or_stop(job, trouble)
        evaluated = _evaluation_due(job)
        if evaluated:
            evaluate_and_keep_best(job)
        stopping = stop_asked()
        if evaluated or stopping or job.step % config.save_steps == 0:
            save(job)
        if stopping:
            _stop(job, stopping)
        began = time.perf_counter()


def _stop(job: Job, number: int) -> NoReturn:
    barrier()  # the first rank to leave ends all of them, and rank 0 may still be writing
    newest = checkpoint_path(job.checkpoints, job.step)
    raise Stopped(number, f"after step {job.step:,} of {job.total_steps:,}, which {newest} holds")


def _prepared_ahead(job: Job, until: int) -> Iterator[TrainingBatch]:
    """The batches of the steps up to ``until``; the next one is tokenised while the present one trains."""
    with ThreadPoolExecutor(max_workers=1) as background:

        def prepare(step: int) -> TrainingBatch:
            return job.batcher(job.sampler.plan(step))

        coming = background.submit(prepare, job.step)
        for step in range(job.step, until):
            batch = coming.result()
            if step + 1 < until:
                coming = background.submit(prepare, step + 1)
            yield batch


def _set_learning_rate(job: Job) -> float:
    config = job.config
    rate = learning_rate_at(
        job.step,
        peak=job.highest_rate,
        total=job.total_steps,
        warmup=job.warmup_steps,
        schedule=config.schedule,
    )
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    return rate


def _watch(job: Job, batch: TrainingBatch, losses: StepLosses) -> dict[str, float]:
    """What rank 0's watch sees in a step; what is wrong, it says."""
    if rank() != 0:
        return {}
    objective, is_warm = job.objectives[batch.data_set], job.step >= job.warmup_steps
    figures, warnings = job.watch.after(job.step, batch, objective, losses, is_warm=is_warm)
    for warning in warnings:
        logger.warning("step %d: %s", job.step + 1, warning)
    return figures


def _evaluation_due(job: Job) -> bool:
    every = job.config.eval_steps or job.sampler.steps_per_epoch
    return job.step == job.total_steps or job.step % every == 0


def evaluate_and_keep_best(job: Job) -> None:
    """Evaluate on rank 0; keep the weights when they are the best so far."""
    refuse_ruined_weights(job)
    evaluation = evaluate_on(job, job.collection)
    write_metrics(job, {"step": job.step, "evaluation": evaluation.metrics})
    say(f"step {job.step:,} of {job.total_steps:,}: {DECIDING} {evaluation.metrics[DECIDING]:.4f}")
    if job.step == 0:
        job.before = evaluation
        return
    if job.best is None or evaluation.metrics[DECIDING] > job.best.metrics[DECIDING]:
        job.best, job.best_step = evaluation, job.step
        if rank() == 0:
            save_best(job.checkpoints, job.step, trained_state(job.encoder.backbone))


def evaluate_on(job: Job, collection: Collection) -> Evaluation:
    """The model as it is, on a collection; rank 0 computes, and all ranks know."""
    evaluation: Evaluation = broadcast_object(_evaluate(job, collection) if rank() == 0 else None)
    return evaluation


def _evaluate(job: Job, collection: Collection) -> Evaluation:
    give_back(beyond=0)  # other sizes are needed than in training, which would lie beside the free ones
    with Progress(texts_to_encode(collection), "evaluate") as progress:
        dims = (job.config.dims or ())[1:]
        evaluation = evaluate(job.encoder, collection, dims=dims, progress=progress.update)
    give_back(beyond=0)  # or each evaluation would leave the process a little larger
    return evaluation


def evaluate_guards(job: Job) -> dict[str, Evaluation]:
    """The model as it is, on each folder of guard data."""
    return {folder: evaluate_on(job, collection) for folder, collection in job.guards.items()}


def save(job: Job) -> None:
    """Write a checkpoint (rank 0) and remove those that are no longer needed."""
    refuse_ruined_weights(job)
    if rank() != 0:
        return
    sync_file(job.folder / "metrics.jsonl")  # a checkpoint must not outlive the lines of its steps
    save_checkpoint(
        job.checkpoints,
        Checkpoint(
            step=job.step,
            weights=trained_state(job.encoder.backbone),
            optimizer=optimizer_state(job.encoder.backbone, job.optimizer),
            state=_state(job),
        ),
    )
    prune(job.checkpoints, job.config.keep_checkpoints)


def _state(job: Job) -> dict[str, Any]:
    """What a checkpoint says beside tensors; all random numbers are seeded from (seed, step, rank)."""
    steps_per_epoch = job.sampler.steps_per_epoch
    return {
        "config": job.config.to_dict(),
        "data": job.examples.fingerprint,
        "step": job.step,
        "sampler": {
            "seed": job.config.seed,
            "epoch": job.step // steps_per_epoch,
            "step_in_epoch": job.step % steps_per_epoch,
        },
        "total_steps": job.total_steps,
        "tokens": {"chunk": job.batcher.chunk_tokens, "keep": job.keep_tokens},
        "before": job.before and asdict(job.before),
        "guards_before": {folder: asdict(evaluation) for folder, evaluation in job.guards_before.items()},
        "best": job.best and asdict(job.best),
        "best_step": job.best_step,
        "skipped": asdict(job.skipped),
        "watch": asdict(job.watch),
    }
