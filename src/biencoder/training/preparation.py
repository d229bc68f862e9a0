"""From a configuration to a run at its first step: model, rows to train and to evaluate on, batches."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from biencoder.config import DataSet, TrainConfig
from biencoder.config.choices import AUTO, DENSE, MULTI, SPARSE
from biencoder.data.data_sets import is_scored, rows_to_evaluate_on
from biencoder.data.evaluation.general_english import GENERAL_ENGLISH, general_english
from biencoder.data.evaluation.held_out import LARGEST_SHARE, hold_out
from biencoder.data.files.beir import Collection, load_collection
from biencoder.data.plan.sampling import KnownPositives, Sampler
from biencoder.data.table import ExampleTable
from biencoder.distributed import in_turns, rank, world_size
from biencoder.errors import UserError
from biencoder.model.base_model import choose_trained, prepare_backbone
from biencoder.model.encoder import ANY_LENGTH, Encoder
from biencoder.model.files.pretrained import checkpoint_activations, locate
from biencoder.model.new_heads.choice import give_head, with_heads
from biencoder.model.tokens import Tokens
from biencoder.objective.combined import CombinedObjective
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.objective.objective import Objective
from biencoder.objective.similarity import SimilarityObjective
from biencoder.objective.sparsity import Sparsity
from biencoder.terminal import say
from biencoder.training.batch import Batcher, Prompts
from biencoder.training.guide import Guide
from biencoder.training.memory.budget import token_budget
from biencoder.training.memory.sharding import agree_on_sharding
from biencoder.training.optimizer import STATIC_RATE, adamw, loss_scaler, usual_learning_rate
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import HELD_OUT_QUERIES, Setup
from biencoder.training.sources.glance import GLANCE, glance
from biencoder.training.state.held_out_corpus import kept_corpus
from biencoder.training.steps.evaluation import usual_interval

HELD_OUT_COST = 0.15  # share of the run's own cost that all evaluations on the default held-out set may take together
HELD_OUT_PASSAGES = 6000  # all evaluations of a short run together may encode so many: about a minute on a laptop
LEAST_PASSAGES = 2  # for each query, however many evaluations there are
ENOUGH_STEPS = 50  # of a run for which nobody has said how long it is to be
MOST_EPOCHS = 10
FEW_STEPS, MANY_STEPS = (
    20,
    100,
)  # with fewer or more, a higher rate loses more than the average with the base gives back
FORWARD_COST = 1 / 3  # of encoding a text, to training on it


class Model(NamedTuple):
    """The model of a run before its first step.

    Attributes:
        encoder: with the head and the weights that learn, on the device; of sharded weights, each rank holds a share.
        config: the run's, with every ``auto`` and None resolved.
        base: a digest of the weights as they came.
    """

    encoder: Encoder
    config: TrainConfig
    base: str


def prepare_model(asked: TrainConfig, examples: ExampleTable) -> Model:
    """The model that a run trains.

    A model that may be sharded is loaded by one rank of a host after another, and each keeps its share. So a host needs
    memory for one whole model, and a device for none. Only a new head is made by a whole model on each device.

    Raises:
        UserError: there is no such model, or an option does not fit it.
    """
    sharding = agree_on_sharding(asked)
    on_host = sharding is not None and not (asked.heads or asked.add_dense or asked.query_table)
    with in_turns() if on_host else nullcontext():
        encoder, config = prepare_encoder(asked, len(examples), on_host=on_host)
        base = encoder.weights_fingerprint
        give_head(config, encoder, examples)
        choose_trained(encoder, config)
        if sharding is not None:
            sharding.place(encoder)
    return Model(encoder, config, base)


def prepare_encoder(config: TrainConfig, rows: int, *, on_host: bool = False) -> tuple[Encoder, TrainConfig]:
    """The base model, and the configuration with every ``auto`` and None resolved by it.

    Args:
        config: as it was given.
        rows: of the training data; they decide how long the run is.
        on_host: leave the weights in the memory of the host.

    Raises:
        UserError: there is no such model, or an option does not fit it.
    """
    config = replace(config, epochs=config.epochs or _epochs(config, rows))
    if config.guide is not None:
        locate(config.guide, "--guide")  # now, not after minutes of other work
    encoder = Encoder.load(
        config.model,
        pooling=config.pooling,
        normalize=config.normalize,
        precision=config.precision,
        device=config.device,
        max_length=max(config.query_max_len, config.passage_max_len),
        dropout=config.dropout,
        trust_remote_code=config.trust_remote_code,
        on_host=on_host,
    )
    settings = encoder.settings.with_prompts(config.query_prompt, config.passage_prompt)
    if config.normalize is None and settings.similarity != "dot" and not settings.sparse:
        settings = replace(settings, normalize=True)  # compared by cosine, so it is trained by cosine
    if settings.static:
        settings = replace(settings, max_length=ANY_LENGTH)  # in training alone texts are cut; other tools never cut
    encoder.adopt(settings)
    config = with_heads(config, encoder)
    settings = encoder.settings
    assert settings.pooling is not None
    dim = config.add_dense or encoder.dim
    _refuse_for_heads(config, dim)
    prepare_backbone(encoder, config)
    if config.gradient_checkpointing:
        if not encoder.backbone.supports_gradient_checkpointing:
            raise UserError(
                f"--gradient-checkpointing: transformers does not offer it for {encoder.backbone.config.model_type}"
            )
        checkpoint_activations(encoder.backbone)
    scaled = bool(settings.normalize) and config.heads != SPARSE
    if not scaled and config.heads != SPARSE:
        say("vectors are not normalised: the temperature is 1.0")
    return encoder, replace(
        config,
        pooling=settings.pooling if settings.parts[0] == DENSE else AUTO,
        normalize=scaled,
        learning_rate=config.learning_rate or _learning_rate(config, encoder, rows),
        lora_alpha=config.lora_alpha or (config.lora_rank and 2.0 * config.lora_rank),
        temperature=_temperature(config, scaled, settings.expands),
        precision=encoder.precision or config.precision,
        dims=None if config.dims is None else tuple(sorted({dim, *config.dims}, reverse=True)),
        query_prompt=settings.query_prompt,
        passage_prompt=settings.passage_prompt,
        query_max_len=min(config.query_max_len, encoder.max_length),
        passage_max_len=min(config.passage_max_len, encoder.max_length),
    )


def _refuse_for_heads(config: TrainConfig, dim: int) -> None:
    """Refuse losses that need other representations."""
    assert config.heads is not None
    if config.dims is not None and config.dims[0] > dim:
        maker = config.model if config.add_dense is None else f"--add-dense {dim}"
        raise UserError(f"--dims {config.dims[0]}: {maker} makes {dim} dimensions")
    if config.sparsity and SPARSE not in config.heads.split(","):
        raise UserError(
            f"--sparsity {config.sparsity:g} needs weights of words, and the model's head is {config.heads}; give "
            f"--heads {SPARSE}, or leave --sparsity out"
        )


def _temperature(config: TrainConfig, scaled: bool, expands: bool) -> float:
    """What was asked for, or the usual; 1.0 for vectors of any length.

    Means of best matches lie closer together than cosines of whole texts do (docs/recipes.md).
    """
    if not scaled and config.heads != SPARSE:
        return 1.0
    assert config.heads is not None
    if expands or config.expand_words:
        return config.temperature or 1.0  # logarithms of scores for thousands of words, of any size
    return config.temperature or (0.02 if MULTI in config.heads else 0.05)


def _learning_rate(config: TrainConfig, encoder: Encoder, rows: int) -> float:
    """The usual rate, or a higher one in a run of some length whose model is averaged with its base."""
    if encoder.settings.static:
        return STATIC_RATE
    averaged = config.averages and FEW_STEPS <= _steps(config, rows) <= MANY_STEPS
    width = int(encoder.backbone.config.hidden_size)
    return usual_learning_rate(width, lora=config.lora_rank is not None, averaged=averaged)


def _epochs(config: TrainConfig, rows: int) -> int:
    """One, or more where that would be a few steps, which teach little (docs/recipes.md)."""
    return min(MOST_EPOCHS, -(-ENOUGH_STEPS // _steps_per_epoch(config, rows)))


def _steps(config: TrainConfig, rows: int) -> int:
    """About how many steps a run takes, before anything is held out."""
    assert config.epochs is not None
    return config.max_steps or config.epochs * _steps_per_epoch(config, rows)


def _steps_per_epoch(config: TrainConfig, rows: int) -> int:
    return -(-rows // config.batch_size)


def evaluation_data(config: TrainConfig, encoder: Encoder, examples: ExampleTable) -> tuple[ExampleTable, Collection]:
    """The rows to train on, and what to evaluate on; a resumed run keeps the passages that it began with."""
    if config.eval_data is not None:
        return examples, load_collection(config.eval_data, config.eval_split)
    rows = rows_to_evaluate_on(config.data_sets, examples)
    queries, passages, looked_at = _held_out_size(config, len(examples))
    held = hold_out(
        examples,
        seed=config.seed,
        queries=queries,
        passages=passages,
        rows=rows,
        nearest=glance(encoder, looked_at),
        kept=kept_corpus(config.output_dir),
    )
    return held.train, held.collection


def _held_out_size(config: TrainConfig, rows: int) -> tuple[int, int, int]:
    """Queries and passages to hold out, and how many passages to look at before.

    All evaluations together cost at most about 15% of the run, or one minute. The first look costs at most as much
    again.
    """
    steps = _steps(config, rows)
    evaluations = 1 + -(-steps // (config.eval_steps or usual_interval(_steps_per_epoch(config, rows), steps)))
    affordable = max(HELD_OUT_PASSAGES, int(HELD_OUT_COST * steps * config.batch_size / FORWARD_COST))
    queries = max(10, min(HELD_OUT_QUERIES, int(LARGEST_SHARE * rows)))
    passages = max(LEAST_PASSAGES * queries, affordable // evaluations)
    return queries, passages, affordable * max(1, config.passage_max_len // GLANCE)


def guards_of(config: TrainConfig) -> dict[str, Collection]:
    """Data that the model does not train on, by the names that reports give them.

    Raises:
        UserError: a folder cannot be read.
    """
    built_in = {GENERAL_ENGLISH: general_english()} if config.general_guard else {}
    return built_in | {str(folder): load_collection(folder) for folder in config.guard_data or ()}


def set_up(
    config: TrainConfig,
    encoder: Encoder,
    examples: ExampleTable,
    collection: Collection,
    guards: dict[str, Collection] | None = None,
) -> tuple[Setup, TrainingProgress]:
    """The run of a resolved configuration, at its first step.

    Raises:
        UserError: no such guide.
    """
    assert config.learning_rate is not None
    assert config.epochs is not None
    guide = _guide(config)
    data_sets = config.data_sets
    sampler = Sampler(
        examples,
        batch_size=config.batch_size,
        group_size=[each.group_size or config.group_size for each in data_sets],
        seed=config.seed,
        weights=[each.weight for each in data_sets],
        mix=config.mix,
    )
    encoder.train()
    longest = max(config.query_max_len, config.passage_max_len)
    chunk_tokens, keep_tokens, held_at_most = token_budget(encoder, config.memory_budget, longest)
    setup = Setup(
        config=config,
        examples=examples,
        encoder=encoder,
        base_head={name: weight.clone() for name, weight in encoder.head.state_dict().items()},
        optimizer=adamw(encoder, config.learning_rate, config.weight_decay),
        scaler=loss_scaler(encoder.precision, encoder.device),
        objectives=[_objective(config, each, is_scored(examples, i)) for i, each in enumerate(data_sets)],
        guide=guide,
        collection=collection,
        guards=guards_of(config) if guards is None else guards,
        total_steps=config.max_steps or config.epochs * sampler.steps_per_epoch,
        sparsity=Sparsity(config.sparsity, config.sparsity_norm) if config.sparsity else None,
    )
    batcher = _batcher(config, encoder, examples, guide, chunk_tokens)
    return setup, TrainingProgress(sampler, batcher, keep_tokens, held_at_most)


def _batcher(
    config: TrainConfig, encoder: Encoder, examples: ExampleTable, guide: Guide | None, chunk_tokens: int
) -> Batcher:
    return Batcher(
        table=examples,
        tokenize_queries=lambda texts: encoder.tokenize_queries(texts, max_length=config.query_max_len),
        tokenize_passages=lambda texts: encoder.tokenize_passages(texts, max_length=config.passage_max_len),
        prompts=[Prompts(each.query_prompt or "", each.passage_prompt or "") for each in config.data_sets],
        chunk_tokens=chunk_tokens,
        known_positives=KnownPositives(examples) if config.mask_false_negatives else None,
        tokenize_for_guide=None if guide is None else partial(_tokenize_for_guide, config, guide.encoder),
        two_way=config.two_way is not False,
        rank=rank(),
        world=world_size(),
        cross_device=config.negatives_cross_device,
    )


def _objective(config: TrainConfig, data_set: DataSet, scored: bool) -> Objective:
    if scored:
        return SimilarityObjective(config.dims or ())
    assert data_set.temperature is not None
    assert data_set.in_batch_negatives is not None
    usual = ContrastiveObjective(
        temperature=data_set.temperature,
        in_batch_negatives=data_set.in_batch_negatives,
        distillation_weight=config.distillation_weight,
        distillation=config.distillation,
        two_way=data_set.in_batch_negatives and config.two_way is not False,
        dims=config.dims or (),
        normalize=bool(config.normalize),
    )
    if config.head_loss_weights is None:
        return usual
    return CombinedObjective(
        **vars(usual), loss_weights=config.head_loss_weights, self_distillation=config.self_distillation
    )


def _guide(config: TrainConfig) -> Guide | None:
    """The model that finds false negatives. It is loaded before the memory budget counts what the process holds."""
    if config.guide is None:
        return None
    longest = max(config.query_max_len, config.passage_max_len)
    encoder = Encoder.load(
        config.guide,
        precision=config.precision,
        device=config.device,
        max_length=longest,
        trust_remote_code=config.trust_remote_code,
        flag="--guide",
    )
    if not encoder.settings.normalize and config.guide_margin:
        say(f"{config.guide}: its vectors are not normalised, so --guide-margin is on the scale of its scores")
    return Guide(encoder, config.guide_margin)


def _tokenize_for_guide(
    config: TrainConfig, guide: Encoder, queries: Sequence[str], passages: Sequence[str]
) -> list[Tokens]:
    settings = guide.settings
    return guide.tokenize_queries(queries, settings.query_prompt, config.query_max_len) + guide.tokenize_passages(
        passages, settings.passage_prompt, config.passage_max_len
    )
