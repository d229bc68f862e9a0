"""One model whose weights are the average of several models' (a model soup)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from biencoder.errors import UserError
from biencoder.model.architectures.table import has_own_code
from biencoder.model.encoder import Encoder, resolve
from biencoder.model.files.pretrained import DROPOUTS, empty_backbone, load_tokenizer, loading, locate
from biencoder.model.files.saving import save_model
from biencoder.model.files.settings import ModelSettings, read_layers, read_settings
from biencoder.model.files.stored import StoredWeights
from biencoder.model.merging.average import slerp, weighted_mean
from biencoder.model.parallel.sharded import own, own_places
from biencoder.model.parity import PROBES
from biencoder.model.tokens import tokenize
from biencoder.terminal import say

Average = Callable[[Sequence[Tensor]], Tensor]

PROBE_TOKENS = 64

# Settings of a configuration that do not change the vectors.
FREE_SETTINGS = {*DROPOUTS, "initializer_range", "use_cache", "gradient_checkpointing"}


@dataclass(frozen=True)
class Parent:
    """One of the models, without its weights.

    Attributes:
        path: as it was named.
        backbone: its transformer, on the meta device.
        tokenizer: its tokenizer.
        settings: what its folder says of pooling and so on; None where it says nothing.
    """

    path: str
    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: ModelSettings

    @classmethod
    def load(cls, path: str, *, trust_remote_code: bool = False) -> "Parent":
        """Read all but the weights.

        Raises:
            UserError: no such model, or one that does not load.
        """
        folder = locate(path)
        settings = read_settings(folder)
        backbone = empty_backbone(folder, path, trust_remote_code=trust_remote_code)
        return cls(path, backbone, load_tokenizer(path, trust_remote_code=trust_remote_code), settings)


def merge(
    paths: Sequence[str], shares: Sequence[float], folder: Path, *, spherical: bool, trust_remote_code: bool
) -> None:
    """Write a model whose weights are the average of some models' into ``folder``.

    Args:
        paths: folders or hub names of the models.
        shares: of the models, in their order; they sum to 1.
        folder: where the model goes.
        spherical: interpolate two models on the great circle, not on the line.
        trust_remote_code: see :meth:`~biencoder.model.encoder.Encoder.load`.

    Raises:
        UserError: a model does not load, or the models are not alike.
    """
    parents = [Parent.load(path, trust_remote_code=trust_remote_code) for path in paths]
    for other in parents[1:]:
        refuse_unlike(parents[0], other)
    backbone = parents[0].backbone
    average: Average = (
        (lambda tensors: slerp(tensors[0], tensors[1], shares[1]))
        if spherical
        else (lambda tensors: weighted_mean(tensors, shares))
    )
    _fill(backbone, averaged(backbone, paths, average))
    settings = resolve(_settings(parents), parents[0].tokenizer, backbone)
    save_model(folder, backbone, parents[0].tokenizer, settings, _averaged_layers(paths, average))


def _averaged_layers(paths: Sequence[str], average: Average) -> list[dict[str, Tensor]]:
    """The average of the linear layers after the pooling, which are the same in all models but for their weights."""
    layers = []
    for path in paths:
        with loading(path):
            layers.append(read_layers(locate(path)))
    return [
        {name: average([weights[name] for weights in same_layer]) for name in same_layer[0]}
        for same_layer in zip(*layers, strict=True)
    ]


def normalized(weights: Sequence[float]) -> tuple[float, ...]:
    """The weights divided by their sum, which must not be 0."""
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def averaged(backbone: PreTrainedModel, paths: Sequence[str], average: Average) -> dict[str, Tensor]:
    """The average of each tensor of ``backbone`` over models on disk, which are read tensor by tensor.

    No pooling here uses a pooler, and not every file has one. It comes from the models that have it.

    Raises:
        UserError: a model that cannot be read, or a tensor whose shape is not the same in all; it is named.
    """
    merged = {}
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    with ExitStack() as stack:
        stored = [stack.enter_context(_stored(path, backbone, shapes)) for path in paths]
        for path, weights in zip(paths, stored, strict=True):
            for name, shape in shapes.items():
                if name in weights and weights.shape(name) != shape:
                    raise _unlike(paths[0], path, name, shape, weights.shape(name))
        for name in shapes:
            having = [weights for weights in stored if name in weights]
            if len(having) == len(stored):
                merged[name] = average([weights[name] for weights in stored])
            elif having:
                merged[name] = having[0][name].clone()
    return merged


@torch.no_grad()
def mix_in(encoder: Encoder, path: str, base_head: Mapping[str, Tensor], share: float) -> None:
    """Replace the weights w of a model in memory by ``share · base + (1 - share) · w``, the base read from disk.

    (WiSE-FT, Wortsman et al., CVPR 2022.)

    Args:
        encoder: the tuned model.
        path: folder or hub name of its base.
        base_head: the weights of its head before training.
        share: from 0 (nothing changes) to 1 (the base, bit for bit).
    """
    tensors = encoder.backbone.state_dict()  # they share memory with the model
    with _stored(path, encoder.backbone, tensors) as base:
        for name, tuned in tensors.items():
            if name in base:
                rows = own(tuned)
                rows.copy_(weighted_mean([rows.cpu(), base[name][own_places(tuned)]], [1 - share, share]))
    for name, tuned in encoder.head.state_dict().items():
        tuned.copy_(weighted_mean([tuned, base_head[name]], [1 - share, share]))


def _stored(path: str, backbone: PreTrainedModel, names: Iterable[str]) -> StoredWeights:
    """The weights of a model like ``backbone``; its own code is trusted if the code of ``backbone`` was."""
    return StoredWeights(path, names, backbone.base_model_prefix, trust_remote_code=has_own_code(backbone))


def refuse_unlike(first: Parent, other: Parent) -> None:
    """Stop where an average would mix weights that mean different things.

    Raises:
        UserError: names the first setting of architecture, tokenizer or pooling that differs.
    """
    one, two = first.backbone.config, other.backbone.config
    for name in ("model_type", *_settings_of(one, two)):
        _refuse_difference(first, other, name, getattr(one, name, None), getattr(two, name, None))
    one_words, two_words = first.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if one_words != two_words:
        word = min(word for word in one_words.keys() | two_words if one_words.get(word) != two_words.get(word))
        _refuse_difference(first, other, f"the tokenizer's id of {word!r}", one_words.get(word), two_words.get(word))
    for text in _probes(one_words):
        ids = [tokenize(parent.tokenizer, [text], PROBE_TOKENS)[0].tolist() for parent in (first, other)]
        _refuse_difference(first, other, f"what the tokenizer makes of {text[:40]!r}", *ids)
    _refuse_difference(first, other, "the head", first.settings.heads, other.settings.heads)
    if first.settings.expands:
        raise UserError(f"{first.path}: a model that gives weights to words by a masked-language head is not merged")
    _refuse_difference(first, other, "a table for queries", first.settings.query_table, other.settings.query_table)
    _refuse_difference(first, other, "the heads' weights", first.settings.weights, other.settings.weights)
    _refuse_difference(first, other, "the Dense layers", first.settings.layers, other.settings.layers)
    if first.settings.pooling is not None and other.settings.pooling is not None:
        for name in ("pooling", "normalize", "lowercase"):
            _refuse_difference(first, other, name, getattr(first.settings, name), getattr(other.settings, name))


def _probes(vocabulary: Iterable[str]) -> tuple[str, ...]:
    """Texts that tokenizers of one vocabulary may treat differently: case, accents, punctuation, special tokens."""
    words = sorted(vocabulary)
    some = " ".join(words[:: max(1, len(words) // PROBE_TOKENS)])
    return (*PROBES, some, some.upper())


def _settings_of(one: PreTrainedConfig, two: PreTrainedConfig) -> list[str]:
    """What both configurations say about the architecture, without the settings that every model has."""
    general = PreTrainedConfig().to_dict().keys()
    both = [name for name in one.to_dict() if name in two.to_dict() and name not in general]
    binding = [name for name in both if name not in FREE_SETTINGS and not name.startswith(("classifier_", "_"))]
    return [*(name for name in binding if name != "model_type"), "is_causal"]


def _refuse_difference(first: Parent, other: Parent, name: str, one: Any, two: Any) -> None:
    if one != two:
        raise _unlike(first.path, other.path, name, one, two)


def _unlike(first: str, other: str, name: str, one: Any, two: Any) -> UserError:
    shown = [text if len(text) <= 60 else f"{text[:60]}…" for text in (str(one), str(two))]
    return UserError(
        f"only models of one kind can be merged: {name} is {shown[0]} in {first} and {shown[1]} in {other}; "
        "name models that were tuned from the same base"
    )


def _settings(parents: Sequence[Parent]) -> ModelSettings:
    """The settings of the first model that has some; a plain transformers folder, as many bases are, has none."""
    saying = [parent for parent in parents if parent.settings.pooling is not None]
    if not saying:
        return parents[0].settings
    chosen = saying[0]
    for name in ("query_prompt", "passage_prompt", "max_length"):
        values = {getattr(parent.settings, name) for parent in saying}
        if len(values) > 1:
            first = getattr(chosen.settings, name)
            say(f"the models' {name.replace('_', ' ')}s differ; the merged model takes {first!r} from {chosen.path}")
    return chosen.settings


def _fill(backbone: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Give an empty backbone its weights; leave out a pooler that no model has."""
    if any(name not in weights for name in backbone.state_dict()):
        backbone.pooler = None
    backbone.load_state_dict(weights, assign=True)
