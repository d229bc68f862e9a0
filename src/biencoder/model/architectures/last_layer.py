"""The last layer, computed only for the tokens whose output is used: under cls pooling, the first of each text.

Keys and values are computed for all tokens. Queries, the output projection and the feed-forward network, five sixths of
a layer's products, are computed for the used tokens alone. Vectors and gradients are the same.

Shapes: T tokens in a packed row, N texts, H heads, E size of a head, D hidden size.
"""

from typing import Any

from torch import Tensor

from biencoder.model.attention.providers import attend_from
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.dropout import dropping_rows, site_of
from biencoder.model.packing import Packing


def run(layer: Any, hidden: Tensor, packing: Packing) -> Any:
    """``[1, T, D]`` -> ``[1, N, D]``: the output for the tokens that the packing names."""
    assert packing.used is not None
    attention = layer.attention.self
    heads = (attention.num_attention_heads, attention.attention_head_size)
    used_ND = hidden[0, packing.used]
    with dropping_rows(packing.used):
        query_NHE = attention.query(used_ND).unflatten(-1, heads)
    attended_NHE = attend_from(
        query_NHE,
        attention.key(hidden[0]).unflatten(-1, heads),
        attention.value(hidden[0]).unflatten(-1, heads),
        packing,
        AttentionSettings(
            attention.scaling, dropout=attention.dropout.p if layer.training else 0.0, site=site_of(attention)
        ),
    )
    with dropping_rows(packing.used):
        return layer.feed_forward_chunk(layer.attention.output(attended_NHE.flatten(1), used_ND)).unsqueeze(0)
