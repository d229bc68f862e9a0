"""The last layer, computed only for the tokens whose output is used: under cls pooling, the first of each text.

Its keys and values are those of all tokens; queries, the output projection and the feed-forward network, five sixths of
a layer's products, are the pooled tokens' alone. The vectors are the same, and so are the gradients.

Shapes: T tokens in a packed row, N texts, H heads, E size of a head, D hidden size.
"""

from types import MethodType
from typing import Any

from torch import Tensor, nn

from biencoder.model.architectures.bert import BERT_LIKE, bert_layers
from biencoder.model.architectures.native_layer import run_layer
from biencoder.model.attention.interface import Packing, attend_from
from biencoder.model.pooling import POOLED_TOKEN


def only_pooled(backbone: nn.Module, pooling: str) -> bool:
    """Whether the backbone's last layer gives the pooled tokens alone, once :func:`spare_last_layer` has seen it."""
    config: Any = backbone.config
    bidirectional_bert = config.model_type in BERT_LIKE and not config.is_decoder and not config.add_cross_attention
    return pooling in POOLED_TOKEN and bidirectional_bert


def spare_last_layer(backbone: nn.Module) -> None:
    """Let the last layer skip what a packing says is not used. A bound method: a deep copy has its own."""
    for last in bert_layers(backbone)[-1:]:
        last.forward = MethodType(_forward, last)


def _forward(layer: Any, hidden: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
    """``[1, T, D]`` -> ``[1, N, D]`` where the packing names the tokens that are used; else as ever."""
    if not isinstance(attention_mask, Packing) or attention_mask.used is None:
        return run_layer(layer, hidden, attention_mask, *args, **kwargs)
    attention = layer.attention.self
    heads = (attention.num_attention_heads, attention.attention_head_size)
    used_ND = hidden[0, attention_mask.used]
    attended_NHE = attend_from(
        attention.query(used_ND).unflatten(-1, heads),
        attention.key(hidden[0]).unflatten(-1, heads),
        attention.value(hidden[0]).unflatten(-1, heads),
        attention_mask,
        scale=attention.scaling,
        dropout=attention.dropout.p if layer.training else 0.0,
    )
    return layer.feed_forward_chunk(layer.attention.output(attended_NHE.flatten(1), used_ND)).unsqueeze(0)
