"""BERT and the architectures whose layers have its parts under the same names: how their layers run on packed rows."""

from types import MethodType
from typing import Any

from torch import Tensor, nn

from biencoder.model.architectures import card_layer, last_layer, native_layer
from biencoder.model.architectures.feed_forward import feed_forward
from biencoder.model.packing import Packing
from biencoder.model.parallel.sharded import is_sharded

BERT_LIKE = {"bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta"}


def bert_layers(backbone: nn.Module) -> list[Any]:
    """The layers of a model of this kind, first to last; none of another."""
    config: Any = backbone.config
    return list(backbone.encoder.layer) if config.model_type in BERT_LIKE else []  # type: ignore[union-attr, arg-type]


def patch_layers(backbone: nn.Module) -> None:
    """Let each layer take the fastest way that gives its author's result. Bound methods: a deep copy has its own."""
    layers = bert_layers(backbone)
    for layer in layers:
        layer.forward = MethodType(_last_forward if layer is layers[-1] else _forward, layer)
        if backbone.config.hidden_act == "gelu":  # type: ignore[union-attr]
            layer.feed_forward_chunk = MethodType(feed_forward, layer)


def skips_unused_tokens(backbone: nn.Module) -> bool:
    """Whether the last layer, once patched, gives only the tokens that a packing names as used."""
    config: Any = backbone.config
    return config.model_type in BERT_LIKE and not config.is_decoder and not config.add_cross_attention


def _forward(layer: Any, hidden: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Written out for the device where this layer is of the kind that is, else as its author wrote it.

    What is written out keeps its own copy of all weights, which a sharded layer must not.
    """
    if isinstance(attention_mask, Packing) and not is_sharded(layer):
        for written_out in (native_layer, card_layer):
            if written_out.runs(layer, hidden):
                return written_out.run(layer, hidden, attention_mask)
    return type(layer).forward(layer, hidden, attention_mask, *args, **kwargs)


def _last_forward(layer: Any, hidden: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Only for the tokens that are used, where a packing names them; else like any other layer."""
    if isinstance(attention_mask, Packing) and attention_mask.used is not None:
        return last_layer.run(layer, hidden, attention_mask)
    return _forward(layer, hidden, attention_mask, *args, **kwargs)
