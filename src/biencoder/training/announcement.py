"""What a training run says before its first step."""

from biencoder.config import TrainConfig
from biencoder.config.choices import MULTI, SPARSE
from biencoder.data.audit import Audit, audit
from biencoder.distributed import world_size
from biencoder.model.encoder import Encoder
from biencoder.model.kernels.library import kind
from biencoder.model.parallel.sharded import is_sharded
from biencoder.model.tokens import token_counter
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.terminal import say, table
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup


def announce(setup: Setup, progress: TrainingProgress, asked: TrainConfig) -> Audit:
    """Say what the audit of the data found, which is returned, and how the model is about to be trained.

    Args:
        setup: of the run.
        progress: at its first step.
        asked: the configuration before it was resolved.
    """
    config, encoder = setup.config, setup.encoder
    count = token_counter(encoder.tokenizer)
    names = [data_set.name or "" for data_set in config.data_sets]
    found = audit(progress.batcher.table, setup.collection, count, config.query_max_len, config.passage_max_len, names)
    say(f"evaluation: {setup.collection.description}{_and_if_too_few(setup)}")
    table(found.rows(config.group_size), ["data", "found", ""])
    _announce_data_sets(setup, progress)
    settings = encoder.settings
    made = f"{settings.pooling} pooling, {'' if settings.normalize else 'not '}normalised"
    if encoder.kind == MULTI:
        made = f"a vector of {encoder.dim:,} dimensions for each token"
    elif encoder.kind == SPARSE:
        made = "a weight for each word"
    elif settings.combined:
        made = f"heads {' + '.join(settings.parts)}, summed by {', '.join(f'{each:g}' for each in settings.weights)}"
    shape = f"{made}, {encoder.precision}"
    batch = f"batches of {config.batch_size:,} queries over {world_size()} process{'es' * (world_size() > 1)}"
    say(f"{config.model}: {shape} on {encoder.device}{_by_what(encoder)}")
    often = config.epochs if config.max_steps is None else 1
    batch += f", {often} times over the data" if often and often > 1 else ""
    say(f"{setup.total_steps:,} steps in {batch}; up to {progress.batcher.chunk_tokens:,} tokens at once")
    _announce_what_is_cut(asked, encoder)
    return found


def _and_if_too_few(setup: Setup) -> str:
    if not setup.may_look_again:
        return ""
    return ". If these queries cannot tell, five more models are trained for it (--no-cross-validate: none)"


def _announce_what_is_cut(asked: TrainConfig, encoder: Encoder) -> None:
    """Say which lengths that were asked for are beyond what the model takes."""
    sides = {"--query-max-len": asked.query_max_len, "--passage-max-len": asked.passage_max_len}
    longer = [f"{flag} {length:,}" for flag, length in sides.items() if length > encoder.max_length]
    if longer:
        most = f"the model takes at most {encoder.max_length:,} tokens of a text"
        say(f"{' and '.join(longer)}: {most}, and the rest is cut")


def _by_what(encoder: Encoder) -> str:
    """Which compiled kernels a CPU uses; without any it trains at half the speed or less."""
    if encoder.device.type != "cpu":
        return ""
    if is_sharded(encoder.backbone):
        return ", its layers without compiled kernels because they are sharded, so slower"
    found = kind()
    return f", kernels for {found}" if found else " without compiled kernels, so slower (see docs/speed.md)"


def _announce_data_sets(setup: Setup, progress: TrainingProgress) -> None:
    """Say how each data set is trained on, where there are several or where that is not the usual way."""
    rows = []
    for number, (data_set, objective) in enumerate(zip(setup.config.data_sets, setup.objectives, strict=True)):
        how = "cosine towards the score"
        if isinstance(objective, ContrastiveObjective):
            negatives = "in-batch negatives" if objective.in_batch_negatives else "no in-batch negatives"
            how = f"{negatives}, groups of {data_set.group_size}, temperature {objective.temperature:g}"
        rows.append([data_set.name or "", how, f"{progress.sampler.turns[number]:,}"])
    first = setup.objectives[0]
    is_usual = isinstance(first, ContrastiveObjective) and first.in_batch_negatives
    if setup.config.train_data != setup.config.data_sets[0].path or not is_usual:
        table(rows, ["data set", "trained on with", "steps an epoch"])
