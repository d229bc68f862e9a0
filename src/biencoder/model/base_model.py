"""Prepare a base model for training: which way it attends, how its texts end, which weights learn."""

from pathlib import Path

import torch

from biencoder.config import TrainConfig
from biencoder.config.choices import ADAPTER, LAST
from biencoder.errors import UserError
from biencoder.model.adapting.causality import attention_of, is_decoder, set_attention
from biencoder.model.adapting.end_token import close_texts
from biencoder.model.adapting.freezing import find_blocks, freeze
from biencoder.model.adapting.lora import add_lora
from biencoder.model.encoder import Encoder
from biencoder.model.files.pretrained import locate
from biencoder.model.files.settings import adapter_base, read_settings
from biencoder.model.packing import pack
from biencoder.terminal import say


def prepare_backbone(encoder: Encoder, config: TrainConfig) -> None:
    """Set attention and tokenizer as the model is trained, evaluated and saved.

    Raises:
        UserError: the architecture does not attend in the way asked for, or an adapter could not say so.
    """
    if config.lora_save == ADAPTER:
        _refuse_adapter(encoder, config)
    if config.attention is not None:
        set_attention(encoder.backbone, config.attention)
    if is_decoder(encoder.backbone):
        _prepare_tokenizer(encoder, config)


def refuse_without_dropout(encoder: Encoder) -> None:
    """Raise `UserError` for a model without dropout when the data are single texts.

    Unsupervised SimCSE (Gao et al. 2021) learns from the difference that dropout makes between two vectors of one text.
    """
    text = pack(encoder.tokenize(["a text"]))
    training = encoder.training
    encoder.train()
    with torch.no_grad():
        first, second = encoder.embed(text), encoder.embed(text)
    encoder.train(training)
    if torch.equal(first, second):
        raise UserError(
            "--train-data holds texts without a query. They teach by the difference that dropout makes, and this "
            "model has no dropout; give --dropout 0.1"
        )


def _refuse_adapter(encoder: Encoder, config: TrainConfig) -> None:
    """Raise `UserError` where an adapter beside its base would not be the model that was trained."""
    own = attention_of(encoder.backbone)
    if config.attention not in (None, own):
        raise UserError(
            f"--lora-save adapter with --attention {config.attention}: an adapter has no configuration of its own, so "
            f"it would be loaded as its base is, {own}; use --lora-save merged"
        )
    if adapter_base(locate(config.model)) is not None:
        raise UserError(
            f"--lora-save adapter: --model {config.model} is an adapter itself, and no tool loads an adapter of an "
            "adapter; use --lora-save merged"
        )


def _prepare_tokenizer(encoder: Encoder, config: TrainConfig) -> None:
    """Add what language models' tokenizers lack for embeddings: padding and, unless there is a convention, an end."""
    tokenizer = encoder.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # sentence-transformers pads, and masks what it padded
    plain = read_settings(locate(config.model)).pooling is None  # otherwise its vectors have a meaning already
    if plain and encoder.settings.pooling == LAST and not close_texts(tokenizer):
        say(f"{config.model}: its tokenizer cannot add an end-of-sequence token; the last word takes its place")


def choose_trained(encoder: Encoder, config: TrainConfig) -> None:
    """Freeze weights, add LoRA, and say how much is left to learn.

    Raises:
        UserError: there are fewer layers than asked for, nothing is left to train, or peft is missing.
    """
    backbone = encoder.backbone
    everything = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    freeze(backbone, embeddings=config.freeze_embeddings, layers=config.freeze_layers)
    if config.freeze_dense:
        if not encoder.settings.layers:
            raise UserError(f"--freeze-dense: {config.model} has no linear layers after its pooling; leave it out")
        encoder.head.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        layers = len(find_blocks(backbone)[1])
        raise UserError(
            f"--freeze-layers {config.freeze_layers}: leaves nothing to train, for the model has {layers} layers"
        )
    if config.lora_rank is not None:
        assert config.lora_alpha is not None
        folder = Path(config.model).expanduser()
        add_lora(
            backbone,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.dropout or 0.0,
            first_layer=config.freeze_layers,
            base=str(folder.resolve()) if folder.is_dir() else config.model,
            seed=config.seed,
        )
    trained = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    if trained != everything:
        say(f"{trained:,} weights are trained, {trained / everything:.1%} of the model's {everything:,}")
