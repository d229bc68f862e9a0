"""When memory runs out, the step is taken again in smaller chunks, with the same batch and the same negatives."""

from dataclasses import replace

from biencoder.device.allocator import held_bytes
from biencoder.device.choice import facts
from biencoder.distributed import max_over_ranks
from biencoder.errors import TrainingError
from biencoder.terminal import say
from biencoder.training.batch import TrainingBatch
from biencoder.training.gradcache import StepLosses, accumulate_gradients
from biencoder.training.memory.out_of_memory import OutOfMemoryError
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup

LESS = 0.9  # share of the memory held when it ran out that may be held from then on


def accumulate_within_memory(setup: Setup, progress: TrainingProgress, batch: TrainingBatch) -> StepLosses:
    """Add the gradient of a batch to the parameters' ``grad``, which must be empty.

    If memory runs out on any rank, all ranks go back to the start of the step and halve their chunks for the rest of
    the run. They also cut batches that were already prepared again, so that no chunk depends on how many those were.

    Raises:
        TrainingError: memory runs out with one text at a time.
    """
    while True:
        batch = batch.in_chunks_of(progress.batcher.chunk_tokens)
        try:
            return accumulate_gradients(
                setup.encoder,
                batch,
                setup.objectives[batch.data_set],
                keep_tokens=progress.keep_tokens,
                seed=(setup.config.seed, progress.step),
                held_at_most=progress.held_at_most,
                guide=setup.guide,
                sparsity=setup.sparsity_at(progress.step),
                scaled=setup.scaler.scale,
            )
        except OutOfMemoryError as error:
            said = str(error)  # the error itself must go: what the step had made so far lives in its traceback
        _halve_chunks(setup, progress, batch, said)


def _halve_chunks(setup: Setup, progress: TrainingProgress, batch: TrainingBatch, said: str) -> None:
    """Give all ranks chunks half as large as the largest that any of them has here, and half as many to keep."""
    progress.held_at_most = min(progress.held_at_most, int(LESS * held_bytes()))
    setup.optimizer.zero_grad()
    facts(setup.encoder.device).free_unused()
    parts = [*batch.chunks, *batch.guide_chunks]
    largest = max_over_ranks(max((part.tokens for part in parts if len(part.index) > 1), default=0))
    if not largest and not progress.keep_tokens:
        longest = max_over_ranks(max((part.tokens for part in parts), default=0))
        raise _too_little(setup, progress, longest, said)
    keep_tokens = min(progress.keep_tokens, max_over_ranks(batch.tokens))
    progress.batcher = replace(progress.batcher, chunk_tokens=largest // 2 or progress.batcher.chunk_tokens)
    progress.keep_tokens = keep_tokens // 2 if largest else 0
    say(
        f"step {progress.step + 1:,}: memory ran out. This step and all later ones run in chunks of up to "
        f"{progress.batcher.chunk_tokens:,} tokens, with the same batch and the same negatives"
    )


def _too_little(setup: Setup, progress: TrainingProgress, longest: int, said: str) -> TrainingError:
    return TrainingError(
        f"step {progress.step + 1:,}: memory runs out with one text at a time, of {longest:,} tokens at most ({said}). "
        f"Lower --passage-max-len or --query-max-len, give --gradient-checkpointing or --lora-rank, take a smaller "
        f"model, or free memory: end other processes, or raise the limit of this one (ulimit -v, a container). "
        f"{setup.newest_checkpoint_said}"
    )
