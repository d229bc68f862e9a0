"""Static embeddings: each token has a vector of its own, whatever stands beside it. No layers, no positions.

A text's vector is the mean of its tokens' (Tulkens and van Dongen 2024, Model2Vec; sentence-transformers'
``StaticEmbedding``). Such a model reads thousands of passages a second on a CPU, and finds less than a transformer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

STATIC = "static_embedding"


class StaticConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is not followed by the type checker
    """The size of a table of token vectors."""

    model_type = STATIC

    def __init__(self, vocab_size: int = 1, hidden_size: int = 1, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        super().__init__(**kwargs)


class StaticModel(PreTrainedModel):  # type: ignore[misc]
    """A table of token vectors in the place of a transformer: its hidden states are the table's rows.

    The weights have the names that sentence-transformers gives them.
    """

    config_class = StaticConfig

    def __init__(self, config: StaticConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        """``[…, L]`` -> ``[…, L, D]``."""
        return BaseModelOutput(last_hidden_state=self.embedding(input_ids))

    @staticmethod
    def of(table_VD: Tensor) -> "StaticModel":
        """The model of a table."""
        with torch.device("meta"):
            model = StaticModel(StaticConfig(*table_VD.shape))
        model.embedding.weight = nn.Parameter(table_VD)
        return model
