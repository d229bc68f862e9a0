"""Architectures whose layers have the parts of BERT's, under the same names."""

from typing import Any

from torch import nn

BERT_LIKE = {"bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta"}


def bert_layers(backbone: nn.Module) -> list[Any]:
    """The layers of a model of this kind, first to last; none of another."""
    config: Any = backbone.config
    return list(backbone.encoder.layer) if config.model_type in BERT_LIKE else []  # type: ignore[union-attr, arg-type]
