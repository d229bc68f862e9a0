"""Which head a training run gives its model."""

from dataclasses import replace

import numpy as np

from biencoder.config import TrainConfig
from biencoder.config.choices import AUTO, DENSE, MULTI, SPARSE
from biencoder.data.table import ExampleTable
from biencoder.errors import UserError
from biencoder.model.encoder import Encoder
from biencoder.model.files.heads.combined import USUAL_WEIGHTS
from biencoder.model.files.settings import ModelSettings
from biencoder.model.new_heads.combined import make_combined
from biencoder.model.new_heads.dense import add_dense
from biencoder.model.new_heads.multi_vector import TOKEN_DIM, expand_queries, make_multi_vector
from biencoder.model.new_heads.query_table import make_query_table
from biencoder.model.new_heads.sparse import make_sparse
from biencoder.model.new_heads.splade import make_splade

LAYER_PASSAGES = 1000  # so many show a new linear layer in which directions vectors differ
COUNTED_PASSAGES = 20_000  # so many show how frequent each token is
LOSS_WEIGHTS = {DENSE: 1.0, SPARSE: 0.1, MULTI: 1.0}  # of several heads, as FlagEmbedding trains BGE-M3


def with_heads(config: TrainConfig, encoder: Encoder) -> TrainConfig:
    """The configuration with what the model will make of a text, and its size where that is new.

    A model with several heads keeps one of them alone, if that is asked for.

    Raises:
        UserError: the model, or an option, does not go with that.
    """
    wanted = config.heads or encoder.settings.heads
    if wanted != encoder.settings.heads:
        _refuse_heads(config, encoder, wanted)
        if encoder.settings.combined:
            encoder.keep_head(wanted)
    kinds = wanted.split(",")
    _refuse_options(config, encoder.settings, kinds)
    is_new = MULTI in kinds and MULTI not in encoder.settings.parts
    config = replace(config, heads=wanted, add_dense=(config.add_dense or TOKEN_DIM) if is_new else config.add_dense)
    if len(kinds) == 1:
        return config
    return replace(
        config,
        head_weights=config.head_weights or encoder.settings.weights or tuple(USUAL_WEIGHTS[kind] for kind in kinds),
        head_loss_weights=config.head_loss_weights or tuple(LOSS_WEIGHTS[kind] for kind in kinds),
    )


def _refuse_heads(config: TrainConfig, encoder: Encoder, wanted: str) -> None:
    """Refuse heads that the model neither has nor can be given."""
    settings, flag = encoder.settings, f"--heads {wanted}"
    if settings.combined and wanted in settings.parts:
        if wanted == MULTI and settings.skips_first:
            raise UserError(
                f"{flag}: {config.model} makes no vector of a text's first token, and no file of a model with vectors "
                f"for tokens alone says that; leave --heads out, or give another model"
            )
        return
    if settings.heads != DENSE:
        raise UserError(f"{flag}: {config.model} has the head {settings.heads}, which is not replaced")
    if settings.static:
        raise UserError(f"{flag}: {config.model} is a static model, whose tokens know nothing of each other")
    if settings.layers:
        raise UserError(f"{flag}: {config.model} has linear layers after its pooling, and tokens are not pooled")


def _refuse_options(config: TrainConfig, settings: ModelSettings, kinds: list[str]) -> None:
    """Refuse options that do not go with these heads."""
    flag, several = f"--heads {','.join(kinds)}", len(kinds) > 1
    if DENSE not in kinds and config.pooling != AUTO and config.heads is not None:
        raise UserError(f"{flag} with --pooling {config.pooling}: tokens are not pooled; leave one out")
    if config.normalize is False and (MULTI in kinds or several):
        what = "the heads are compared by cosines" if several else "the vectors of tokens have length 1"
        raise UserError(f"{flag} with --no-normalize: {what}; leave one out")
    if SPARSE in kinds or several:
        wrong = {"--dims": config.dims, "--add-dense": MULTI not in kinds and config.add_dense}
        wrong["--normalize"] = not several and config.normalize
        if extra := [name for name, given in wrong.items() if given]:
            what = "heads of several kinds are cut by none" if several else "a weight for each token is no vector"
            raise UserError(f"{flag} with {extra[0]}: {what}; leave one out")
    if config.expand_words and (kinds != [SPARSE] or settings.heads == SPARSE):
        why = "the model has its head already" if SPARSE in settings.parts else f"it needs --heads {SPARSE}"
        raise UserError(f"--expand-words: {why}")
    if config.query_table and kinds != [SPARSE]:
        raise UserError(f"--query-table needs --heads {SPARSE}: other kinds compare more than weights of words")
    if config.query_table and settings.query_table:
        raise UserError("--query-table: the model has its table already, which is trained on; leave it out")
    for name, given in (("--head-weights", config.head_weights), ("--head-loss-weights", config.head_loss_weights)):
        if given is not None and len(given) != len(kinds):
            raise UserError(f"{name} has {len(given)} numbers, and there are {len(kinds)} heads: {','.join(kinds)}")
        if given is not None and not several:
            raise UserError(f"{name} needs several heads, such as --heads dense,sparse,multi")


def give_head(config: TrainConfig, encoder: Encoder, examples: ExampleTable) -> None:
    """Give the encoder the head that was asked for."""
    is_new = config.heads != encoder.settings.heads
    if is_new or config.add_dense is not None:
        queries, passages = _queries_and_answers(examples, LAYER_PASSAGES)
        if not is_new:
            assert config.add_dense is not None
            add_dense(encoder, config.add_dense, passages)
        elif config.heads == MULTI:
            assert config.add_dense is not None
            make_multi_vector(encoder, config.add_dense, passages, skip_punctuation=config.skip_punctuation)
        elif config.heads == SPARSE and config.expand_words:
            make_splade(encoder, config.model)
        elif config.heads == SPARSE:
            make_sparse(encoder, queries, passages)
        else:
            assert config.heads is not None
            make_combined(encoder, config.heads, config.add_dense, queries, passages)
    if config.query_table:
        counted = _queries_and_answers(examples, COUNTED_PASSAGES)[1]
        make_query_table(encoder, *_queries_and_answers(examples, LAYER_PASSAGES), counted)
    if config.head_weights is not None:
        encoder.weigh_heads(config.head_weights)
    expand_queries(encoder, config)


def _queries_and_answers(examples: ExampleTable, most: int) -> tuple[list[str], list[str]]:
    """The queries, and a passage that answers each, of at most so many rows throughout the data."""
    numbers = np.linspace(0, len(examples) - 1, min(len(examples), most)).astype(np.int64)
    rows = [examples[int(number)] for number in numbers]
    return [row.query for row in rows], [row.positives[0] for row in rows]
