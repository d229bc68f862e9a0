"""``--dry-run``: everything up to training, then a few steps that are thrown away, to say what the run would take."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from biencoder.data.files.beir import Collection
from biencoder.distributed import barrier, broadcast_object, max_over_ranks, rank
from biencoder.model.parallel.sharing import alone, ranks
from biencoder.retrieval.evaluate import texts_to_encode
from biencoder.retrieval.mining.queries import Queries
from biencoder.terminal import ProgressLine, say
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup
from biencoder.training.state.checkpoint import step_of
from biencoder.training.state.output_folder import OutputFolder
from biencoder.training.steps.forecast import WARM_UP, Forecast, spread
from biencoder.training.steps.train_step import train_step

MEASURED = 4  # steps, after those that warm up
SECONDS = 30  # of steps after which one measured step is enough
TEXTS = 256  # of each kind that are encoded to measure an evaluation
FEW = 16  # texts that are encoded before, because the first ones take longer

Encode = Callable[[Sequence[str]], np.ndarray]


def dry_run(setup: Setup, progress: TrainingProgress, folder: OutputFolder, began: float) -> None:
    """Measure a few training steps and a part of the evaluation, say what the run takes, and write nothing.

    The weights in memory change; they are not meant to be used afterwards. All ranks take part.

    Args:
        setup: of the run.
        progress: at the first step.
        folder: where the run would write; it may hold a part of the run already.
        began: when the run began, on the clock of ``time.perf_counter``.

    Raises:
        TrainingError: memory runs out with one text at a time.
    """
    newest = broadcast_object(folder.newest_checkpoint() if rank() == 0 else None)
    progress.step = 0 if newest is None else step_of(newest)
    so_far = time.perf_counter() - began
    so_far += _measure_encoding(setup, progress)  # by all ranks at once, as they will encode
    forecast = Forecast(setup, progress, shortest=0)
    _measure_steps(setup, progress, forecast)
    if rank() == 0:
        say(forecast.said(so_far if newest is None else None, is_under_way=False))
    goes_on = "starts the run" if newest is None else f"continues the run from step {progress.step:,}"
    say(
        "dry run: nothing was written and nothing was trained; the same command without --dry-run "
        f"{goes_on if progress.step < setup.total_steps else 'ends the run'}"
    )
    barrier()


def _measure_steps(setup: Setup, progress: TrainingProgress, forecast: Forecast) -> None:
    """Take steps from all over the run, with the batches that they have if rows are not clustered."""
    setup.encoder.train()
    wanted = WARM_UP + MEASURED
    steps = list(spread(range(progress.step, setup.total_steps), wanted)) or [0]
    began = time.perf_counter()
    with ProgressLine(wanted, "measure steps") as line:
        for number in range(wanted):
            batch = progress.batcher(progress.sampler.plan(steps[number % len(steps)]))
            started = time.perf_counter()
            train_step(setup, progress, batch.to(setup.encoder.device))
            now = time.perf_counter()
            forecast.measure(batch.tokens, now - started)
            line.update(number + 1)
            if number >= WARM_UP and max_over_ranks(int(now - began)) >= SECONDS:
                break


def _measure_encoding(setup: Setup, progress: TrainingProgress) -> float:
    """Measure what an evaluation takes, and return the seconds that come before the first step."""
    encoder, config, spent = setup.encoder, setup.config, progress.spent
    spent.evaluation = _evaluation_seconds(setup, setup.collection)
    spent.guards = sum(_evaluation_seconds(setup, each) for each in setup.guards.values())
    before = spent.evaluation + spent.guards
    if config.cluster_size == 1 and not config.mine_negatives:
        return before
    examples = setup.examples
    some = [examples[row] for row in spread(range(len(examples)), TEXTS)]
    queries = _seconds(encoder.encode_queries, [each.query for each in some], len(Queries.of(examples.query_hashes)))
    if config.cluster_size > 1:
        before += queries
    if config.mine_negatives:
        texts = [text for each in some for text in (*each.positives, *each.negatives)]
        count = len(np.unique(np.concatenate([examples.positive_hashes.values, examples.negative_hashes.values])))
        spent.mining = queries + _seconds(encoder.encode_passages, texts[:TEXTS], count)
        before += spent.mining
    return before


def _evaluation_seconds(setup: Setup, collection: Collection) -> float:
    """About how long it takes to encode a collection, judged by an even sample of its texts."""
    passages = len(collection.corpus_ids)
    queries = texts_to_encode(collection) - passages
    return _seconds(setup.encoder.encode_queries, collection.query_texts, queries) + _seconds(
        setup.encoder.encode_passages, collection.corpus_texts, passages
    )


def _seconds(encode: Encode, texts: Sequence[str], count: int) -> float:
    """About how long it takes all ranks to encode ``count`` texts such as these."""
    some = [texts[place] for place in spread(range(len(texts)), TEXTS)]
    with alone():  # so few that the ranks could not share them evenly
        encode(some[:FEW])
        began = time.perf_counter()
        encode(some)
        seconds = time.perf_counter() - began
    return seconds / max(1, len(some)) * count / ranks()
