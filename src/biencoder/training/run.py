"""``biencoder train``: from a configuration to a tuned model in a folder, and the report of what it gained."""

import contextlib
import errno
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from biencoder.commands.check import token_counter
from biencoder.config import TrainConfig, data_sets_of
from biencoder.config.choices import MERGED
from biencoder.data.audit import audit
from biencoder.data.data_sets import is_of_single_texts, read_data_sets, settings_of
from biencoder.distributed import (
    barrier,
    broadcast_object,
    first_to_fail,
    lost_a_rank,
    process_group,
    rank,
    world_size,
)
from biencoder.errors import TrainingError, UserError, first_line
from biencoder.model.adapting.lora import merge_lora
from biencoder.model.adapting.merging import mix_in
from biencoder.model.encoder import Encoder
from biencoder.model.kernels import kind
from biencoder.objective.similarity import SimilarityObjective
from biencoder.report.training import Outcome, report_result, write_evaluation, write_model_card
from biencoder.retrieval.evaluate import Evaluation
from biencoder.terminal import Progress, say, table
from biencoder.training.base_model import choose_trained, refuse_without_dropout
from biencoder.training.job import Job, Skipped
from biencoder.training.loop import (
    evaluate_and_keep_best,
    evaluate_guards,
    evaluate_on,
    train_steps,
)
from biencoder.training.memory.out_of_memory import ran_out_of_memory
from biencoder.training.optimizer import restore_optimizer
from biencoder.training.preparation import evaluation_data, make_job, prepare_encoder
from biencoder.training.state.checkpoint import load_best, load_checkpoint, restore_state, step_of
from biencoder.training.state.metrics_file import forget_metrics_after
from biencoder.training.state.output_folder import OutputFolder
from biencoder.training.watch.learning import Watch
from biencoder.training.watch.signals import finishing_steps, stops_by_signal

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        output_dir: where the model is.
        steps: optimizer steps of the run.
        seconds: of this process, evaluations included.
        before: evaluation of the model as it came.
        after: evaluation of the model as it is saved.
        guards_before: evaluation of the model as it came on each folder of ``guard_data``.
        guards_after: likewise of the model as it is saved.
    """

    output_dir: Path
    steps: int
    seconds: float
    before: Evaluation
    after: Evaluation
    guards_before: dict[str, Evaluation]
    guards_after: dict[str, Evaluation]


def run(config: TrainConfig) -> None:
    """The command: :func:`train`, whose report is on the terminal."""
    train(config)


def train(config: TrainConfig) -> TrainResult | None:
    """Fine-tune a model as ``config`` says; under ``torchrun``, as one of its ranks.

    Returns:
        What came of it; None where the folder holds this very run, finished, and nothing was left to do.

    Raises:
        UserError: bad input: data, model, folder, or a checkpoint of another configuration; or the disk is full.
        TrainingError: a loss or gradient that is not finite, no memory, or a rank that was killed.
        Stopped: SIGTERM or SIGINT; the step under way is finished and there is a checkpoint. Both have their handlers
            of before again afterwards.
    """
    with stops_by_signal(), process_group(config.device):
        try:
            return _train(config)
        except Exception as error:
            if not first_to_fail():  # another rank has said why
                raise SystemExit(2 if isinstance(error, UserError) else 1) from None
            if lost_a_rank(error):
                raise TrainingError(
                    "another process of this run is gone without a word: killed, perhaps because memory ran out. "
                    f"What {config.output_dir} holds is whole; the same command goes on from the last checkpoint"
                ) from error
            if ran_out_of_memory(error):
                raise TrainingError(
                    f"memory ran out where smaller chunks do not help ({first_line(error)}). "
                    "Take a smaller model, give --lora-rank, or make room: other processes, a limit on this one. What "
                    f"{config.output_dir} holds is whole; the same command goes on from the last checkpoint"
                ) from error
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise UserError(
                    f"{error.filename or config.output_dir}: {error.strerror}. Make room, and the same command goes on "
                    f"from the last checkpoint in {config.output_dir}, which is whole"
                ) from error
            raise


def _train(config: TrainConfig) -> TrainResult | None:
    began = time.perf_counter()
    folder = OutputFolder(config.output_dir)
    folder.refuse_foreign(config.resume)
    examples = read_data_sets(config.data_sets, config.on_bad_row)
    encoder, config = prepare_encoder(config)
    base = encoder.weights_fingerprint
    choose_trained(encoder, config)
    if any(is_of_single_texts(examples, number) for number in range(len(config.data_sets))):
        refuse_without_dropout(encoder)
        say("rows of a text alone: each is its own positive, under another dropout mask (unsupervised SimCSE)")
    job = make_job(config, encoder, *evaluation_data(config, examples))
    identity = {
        "config": config.to_dict(),
        "data_sets": settings_of(data_sets_of(config.train_data)),
        "data": job.examples.fingerprint,
        "evaluation": " ".join(each.fingerprint for each in (job.collection, *job.guards.values())),
        "model": base,
        "guide": job.guide and job.guide.encoder.fingerprint,
        "world_size": world_size(),
    }
    folder.refuse_other_run(identity)
    if folder.finished:
        say(f"{config.output_dir} holds this run, finished: nothing to do")
        if rank() == 0 and (wrong := folder.flaw()):
            logger.warning("%s is not as the run left it: %s", config.output_dir, wrong)
        return None
    _report_start(job)
    barrier()  # every rank has seen the folder as it was
    with folder.claimed() if rank() == 0 else contextlib.nullcontext():
        if rank() == 0:
            folder.refuse_other_run(identity)  # one may have begun there, and ended, since it was looked at
        newest = broadcast_object(folder.newest_checkpoint() if rank() == 0 else None)
        if rank() == 0:
            folder.sweep(0 if newest is None else step_of(newest))
        if newest is not None:
            _restore(job, newest)
        else:
            if rank() == 0:
                folder.start(identity, config.to_yaml())
            barrier()
            evaluate_and_keep_best(job)
            job.guards_before = evaluate_guards(job)
        with finishing_steps(), Progress(job.total_steps, "train", done=job.step) as progress:
            train_steps(job, progress)
        return _finish(job, folder, began)


def _report_start(job: Job) -> None:
    """The audit of the data, and what will be done with them."""
    config, encoder = job.config, job.encoder
    count = token_counter(encoder.tokenizer)
    names = [data_set.name or "" for data_set in config.data_sets]
    found = audit(job.batcher.table, job.collection, count, config.query_max_len, config.passage_max_len, names)
    say(f"evaluation: {job.collection.description}")
    table(found.rows(config.group_size), ["data", "found", ""])
    _report_data_sets(job)
    settings = encoder.settings
    shape = f"{settings.pooling} pooling, {'' if settings.normalize else 'not '}normalised, {encoder.precision}"
    batch = f"batches of {config.batch_size:,} queries over {world_size()} process{'es' * (world_size() > 1)}"
    say(f"{config.model}: {shape} on {encoder.device}{_by_what(encoder)}")
    say(f"{job.total_steps:,} steps in {batch}; up to {job.batcher.chunk_tokens:,} tokens at once")


def _by_what(encoder: Encoder) -> str:
    """Which compiled kernels a CPU uses; where it has none, it trains at half the speed or less."""
    if encoder.device.type != "cpu":
        return ""
    found = kind()
    return f", kernels for {found}" if found else " by PyTorch alone, for want of compiled kernels (see docs/speed.md)"


def _report_data_sets(job: Job) -> None:
    """How each of several data sets is trained on, and what is trained on in another way than usual."""
    rows = []
    for number, (data_set, objective) in enumerate(zip(job.config.data_sets, job.objectives, strict=True)):
        if isinstance(objective, SimilarityObjective):
            how = "cosine towards the score"
        else:
            negatives = "in-batch negatives" if objective.in_batch_negatives else "no in-batch negatives"
            how = f"{negatives}, groups of {data_set.group_size}, temperature {objective.temperature:g}"
        rows.append([data_set.name or "", how, f"{job.sampler.turns[number]:,}"])
    is_plain = job.config.train_data == job.config.data_sets[0].path
    if not is_plain or isinstance(job.objectives[0], SimilarityObjective) or not job.objectives[0].in_batch_negatives:
        table(rows, ["data set", "trained on with", "steps an epoch"])


def _restore(job: Job, path: Path) -> None:
    """Put the job where the checkpoint was written."""
    checkpoint = load_checkpoint(path)
    restore_state(job.encoder.backbone, checkpoint.weights)
    restore_optimizer(job.encoder.backbone, job.optimizer, checkpoint.optimizer)
    state = checkpoint.state
    job.step, job.best_step = checkpoint.step, state["best_step"]
    job.before, job.best = (_evaluation(state[name]) for name in ("before", "best"))
    job.guards_before = {folder: Evaluation(**saved) for folder, saved in state["guards_before"].items()}
    if state["config"]["memory_budget"] == job.config.to_dict()["memory_budget"]:  # chunks decide which masks are drawn
        job.keep_tokens = state["tokens"]["keep"]
        job.batcher = replace(job.batcher, chunk_tokens=state["tokens"]["chunk"])
    job.skipped, job.watch = Skipped(**state.get("skipped", {})), Watch(**state.get("watch", {}))
    if rank() == 0:
        forget_metrics_after(job.folder / "metrics.jsonl", job.step)
    barrier()
    say(f"going on from step {job.step:,} of {job.total_steps:,} ({path})")


def _evaluation(saved: dict[str, Any] | None) -> Evaluation | None:
    return None if saved is None else Evaluation(**saved)


def _finish(job: Job, folder: OutputFolder, began: float) -> TrainResult:
    """Save the best weights, averaged with the base's if asked, as the model, and the reports beside it."""
    assert job.before is not None
    assert job.best is not None
    if job.best_step != job.step:
        restore_state(job.encoder.backbone, load_best(folder.checkpoints, job.best_step))
    if job.config.lora_rank is not None and job.config.lora_save == MERGED:
        merge_lora(job.encoder.backbone)
    after = job.best
    if job.config.keep_base:
        mix_in(job.encoder.backbone, job.config.model, job.config.keep_base)
        after = evaluate_on(job, job.collection)
    outcome = Outcome(
        config=job.config,
        before=job.before,
        after=after,
        tuned=job.best,
        best_step=job.best_step,
        steps=job.total_steps,
        rows=len(job.batcher.table),
        skipped=job.skipped.total,
        guards_before=job.guards_before,
        guards_after=evaluate_guards(job),
    )
    if rank() == 0:
        job.encoder.save(job.folder)
        write_evaluation(job.folder / "eval.json", outcome)
        write_model_card(job.folder / "README.md", job.encoder, outcome)
        folder.finish()
        report_result(outcome)
    barrier()
    seconds = time.perf_counter() - began
    return TrainResult(job.folder, job.step, seconds, job.before, after, outcome.guards_before, outcome.guards_after)
