"""A training run: from a configuration to a tuned model in a folder, and the report of what it gained."""

import contextlib
import errno
import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from biencoder.config import TrainConfig
from biencoder.config.choices import ADAPTER, MERGED
from biencoder.data.audit import Audit
from biencoder.data.data_sets import is_of_single_texts, parts_of, read_data_sets
from biencoder.data.table import ExampleTable
from biencoder.device.choice import KNOWN, kind_of
from biencoder.distributed import (
    barrier,
    gathered_state,
    in_step,
    let_one_speak,
    process_group,
    rank,
    read_once_a_host,
)
from biencoder.errors import TrainingError, UserError, first_line
from biencoder.model.adapting.lora import merge_lora
from biencoder.model.base_model import refuse_without_dropout
from biencoder.model.files.upload import FLAG, reserve, upload
from biencoder.report.training import Outcome, report_result, write_evaluation, write_model_card
from biencoder.report.written import write_report
from biencoder.retrieval.evaluate import Evaluation
from biencoder.terminal import ProgressLine, say
from biencoder.training.announcement import announce
from biencoder.training.cross_validation import CrossValidation, forget_parts
from biencoder.training.keep_base import keep_base
from biencoder.training.memory.out_of_memory import ran_out_of_memory
from biencoder.training.preparation import evaluation_data, guards_of, prepare_model, set_up
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.state.checkpoint import load_best, restore_state
from biencoder.training.state.output_folder import OutputFolder
from biencoder.training.steps.dry_run import dry_run
from biencoder.training.steps.evaluation import evaluate_guards
from biencoder.training.steps.loop import train_steps
from biencoder.training.steps.start import identity_of, start_or_resume
from biencoder.training.trackers.process import followed, refuse_missing
from biencoder.training.watch.signals import finishing_steps, stops_by_signal

# PyTorch's words for an operation that has none, and for products that were computed before the option was known.
NOT_DETERMINISTIC = ("does not have a deterministic implementation", "CUBLAS_WORKSPACE_CONFIG")
CARD = "README.md"
SINGLE_TEXTS = (
    "rows with a single text: each text is its own positive, under another dropout mask (unsupervised SimCSE)"
)
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
        guards_after: evaluation of the model as it is saved on each folder of ``guard_data``.
    """

    output_dir: Path
    steps: int
    seconds: float
    before: Evaluation
    after: Evaluation
    guards_before: dict[str, Evaluation]
    guards_after: dict[str, Evaluation]


def train(config: TrainConfig) -> TrainResult | None:
    """Fine-tune a model as ``config`` says; under ``torchrun``, as one of its ranks.

    Returns:
        The result of the run. None when the folder holds this very run, finished, so that there was nothing to do, and
        None after a dry run.

    Raises:
        UserError: data, model or folder cannot be used, a checkpoint has another configuration, or the disk is full.
        TrainingError: a loss or gradient is not finite, memory ran out, or a rank was killed.
        Stopped: SIGTERM or SIGINT arrived; the step under way is finished and there is a checkpoint. Afterwards both
            signals have their former handlers again.
    """
    with stops_by_signal(), process_group(config.device), KNOWN[kind_of(config.device)].same_bits(config.deterministic):
        try:
            return _train(config)
        except Exception as error:
            let_one_speak(error, f"{config.output_dir} is intact: the same command continues from the last checkpoint")
            if ran_out_of_memory(error):
                raise TrainingError(
                    f"memory ran out where smaller chunks do not help ({first_line(error)}). "
                    "Take a smaller model, give --lora-rank, a lower --memory-budget or, under torchrun, --shard on; "
                    "or free memory: end other processes, or raise this one's limit. "
                    f"{config.output_dir} is intact: the same command continues from the last checkpoint"
                ) from error
            if config.deterministic and any(words in str(error) for words in NOT_DETERMINISTIC):
                raise UserError(
                    f"--deterministic: {first_line(error)}. Without the option, a killed run that continues ends with "
                    "slightly different numbers"
                ) from error
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise UserError(
                    f"{error.filename or config.output_dir}: {error.strerror}. Free some space; then the same "
                    f"command continues from the last checkpoint in {config.output_dir}"
                ) from error
            raise


def _train(config: TrainConfig) -> TrainResult | None:
    began = time.perf_counter()
    refuse_missing(config.log_to or ())
    folder = OutputFolder(config.output_dir)
    folder.refuse_foreign(config.resume)
    if config.continue_from is not None:
        OutputFolder(config.continue_from).refuse_unfinished()
    repository = _reserved(config)
    examples = read(config)
    asked, guards = config, guards_of(config)
    encoder, config, base = prepare_model(asked, examples)
    with in_step(encoder.backbone):
        if any(is_of_single_texts(examples, number) for number in range(len(config.data_sets))):
            refuse_without_dropout(encoder)
            say(SINGLE_TEXTS)
        setup, progress = set_up(config, encoder, *evaluation_data(config, encoder, examples), guards)
        identity = identity_of(setup, base)
        folder.refuse_other_run(identity)
        if folder.finished:
            say(f"{config.output_dir} holds this run, and it is finished: nothing to do")
            wrong = folder.flaw() if rank() == 0 else None
            if wrong is not None:
                logger.warning("%s has changed since the run ended: %s", config.output_dir, wrong)
            _send(folder, None if wrong else repository)
            return None
        found = announce(setup, progress, asked)
        barrier()  # every rank has seen the folder as it was
        may_claim = rank() == 0 and (folder.path.is_dir() or not config.dry_run)  # a dry run makes no folder
        with folder.claimed() if may_claim else contextlib.nullcontext():
            if config.dry_run:
                dry_run(setup, progress, folder, began)
                return None
            start_or_resume(setup, progress, folder, identity, began)
            with followed(config):
                with finishing_steps(), ProgressLine(setup.total_steps, "train", done=progress.step) as line:
                    train_steps(setup, progress, line)
                result = _finish(setup, progress, CrossValidation(asked, examples, base), found, began)
            _send(folder, repository)
            return result


def read(config: TrainConfig) -> ExampleTable:
    """The training data."""
    parts = parts_of(config.data_sets, config.on_bad_row)
    return read_once_a_host(partial(read_data_sets, config.data_sets, config.on_bad_row), parts)


def _reserved(config: TrainConfig) -> str | None:
    """Where rank 0 sends the model in the end; None if nobody wants that.

    Raises:
        UserError: the model could not be sent there, or nobody could load it there.
    """
    if config.push_to_hub is None or rank() != 0:
        return None
    if config.lora_save == ADAPTER and Path(config.model).is_dir():
        raise UserError(
            f"{FLAG} {config.push_to_hub}: an adapter names its base, and --model {config.model} is a folder that "
            f"nobody else has; give the base's name on the Hub, or --lora-save {MERGED}"
        )
    return reserve(config.push_to_hub, private=config.private, create=not config.dry_run)


def _send(folder: OutputFolder, repository: str | None) -> None:
    """Send the model of the finished run, which stays complete whatever happens."""
    if repository is not None:
        say(f"\nThe model is on the Hub: {upload(folder.path, folder.model_files, repository)}")


def _finish(
    setup: Setup, progress: TrainingProgress, validation: CrossValidation, found: Audit, began: float
) -> TrainResult:
    """Save the best weights, averaged with the base's if asked, and the reports beside them."""
    folder = OutputFolder(setup.folder)
    assert progress.before is not None
    assert progress.best is not None
    config, encoder = setup.config, setup.encoder
    if progress.best_step != progress.step:
        restore_state(encoder, load_best(folder.checkpoints, progress.best_step))
    if config.lora_rank is not None and config.lora_save == MERGED:
        merge_lora(encoder.backbone)
    kept = keep_base(setup, progress)
    guards_after = evaluate_guards(setup, progress.step, kept.guards)
    gathered = gathered_state(encoder.backbone) if setup.is_sharded else None
    model_files = encoder.save(setup.folder, gathered) if rank() == 0 else []
    del gathered
    outcome = Outcome(
        config=config,
        before=progress.before,
        kept=kept,
        continued=progress.continued,
        best_step=progress.best_step,
        steps=setup.total_steps,
        rows=len(progress.batcher.table),
        skipped=progress.skipped.total,
        overflows=progress.skipped.overflows,
        guards_before=progress.guards_before,
        guards_after=guards_after,
        second_look=validation.look_again(setup, progress.before, kept),
    )
    if rank() == 0:
        write_evaluation(setup.folder / "eval.json", outcome)
        write_model_card(setup.folder / CARD, encoder, outcome)
        write_report(setup.folder, encoder, outcome, found, setup.collection)
        folder.finish([CARD, *model_files])
        forget_parts(setup)
        report_result(outcome)
    barrier()
    return TrainResult(
        output_dir=setup.folder,
        steps=progress.step,
        seconds=time.perf_counter() - began,
        before=progress.before,
        after=kept.evaluation,
        guards_before=outcome.guards_before,
        guards_after=outcome.guards_after,
    )
