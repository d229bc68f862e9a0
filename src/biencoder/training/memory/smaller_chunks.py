"""A step for which memory runs out is taken again in smaller chunks: the same batch, the same negatives."""

from dataclasses import replace

import torch

from biencoder.device.allocator import give_back, held_bytes
from biencoder.distributed import max_over_ranks, rank
from biencoder.errors import TrainingError
from biencoder.terminal import say
from biencoder.training.batch import TrainingBatch
from biencoder.training.gradcache import StepLosses, accumulate_gradients
from biencoder.training.job import Job
from biencoder.training.memory.out_of_memory import OutOfMemoryError

LESS = 0.9  # of what was held when memory ran out, may be held from then on


def accumulate_within_memory(job: Job, batch: TrainingBatch) -> StepLosses:
    """Add the gradient of a batch to the parameters' ``grad``, which must be empty.

    Where memory runs out, on any rank, all of them go back to the start of the step and halve their chunks, which stay
    so for the rest of the run. A batch that was cut before is cut anew, so that no chunk depends on which batches were
    prepared ahead.

    Raises:
        TrainingError: memory runs out with one text at a time.
    """
    while True:
        batch = batch.in_chunks_of(job.batcher.chunk_tokens)
        try:
            return accumulate_gradients(
                job.encoder,
                batch,
                job.objectives[batch.data_set],
                keep_tokens=job.keep_tokens,
                seed=(job.config.seed, job.step, rank()),
                held_at_most=job.held_at_most,
                guide=job.guide,
            )
        except OutOfMemoryError as error:
            said = str(error)  # the error itself must go: what the step had made so far lives in its traceback
        _halve_chunks(job, batch, said)


def _halve_chunks(job: Job, batch: TrainingBatch, said: str) -> None:
    """Give all ranks chunks half as large as the largest that any of them has here, and half as many to keep."""
    job.held_at_most = min(job.held_at_most, int(LESS * held_bytes()))
    job.optimizer.zero_grad()
    give_back(beyond=0)
    if job.encoder.device.type == "cuda":
        torch.cuda.empty_cache()
    parts = [*batch.chunks, *batch.guide_chunks]
    largest = max_over_ranks(max((part.tokens for part in parts if len(part.index) > 1), default=0))
    if not largest and not job.keep_tokens:
        raise _too_little(job, max_over_ranks(max((part.tokens for part in parts), default=0)), said)
    kept = min(job.keep_tokens, max_over_ranks(batch.tokens))
    job.batcher = replace(job.batcher, chunk_tokens=largest // 2 or job.batcher.chunk_tokens)
    job.keep_tokens = kept // 2 if largest else 0
    say(
        f"step {job.step + 1:,}: memory ran out; taken again, and on from here, in chunks of up to "
        f"{job.batcher.chunk_tokens:,} tokens: the same batch, the same negatives"
    )


def _too_little(job: Job, longest: int, said: str) -> TrainingError:
    return TrainingError(
        f"step {job.step + 1:,}: memory runs out with one text at a time, of {longest:,} tokens at most ({said}). "
        f"Lower --passage-max-len or --query-max-len, give --gradient-checkpointing or --lora-rank, take a smaller "
        f"model, or make room: other processes, a limit on this one (ulimit -v, a container). {job.what_is_kept}"
    )
