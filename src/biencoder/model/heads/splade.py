"""A weight for each word of the vocabulary that a text makes likely, whether it has the word or not.

Shapes: T tokens in the row, N texts, H hidden size, V words of the vocabulary, K words of the text that has most.
"""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from biencoder.model.heads.best_words import best_words
from biencoder.model.heads.head import Head
from biencoder.model.packing import PackedBatch
from biencoder.model.representations.sparse import BUCKETS, Sparse


class SpladeHead(Head):
    """The head of a masked language model scores all words at each token; the best score of each word counts.

    The weight is ``log(1 + ReLU(score))`` (SPLADE v2, Formal et al. 2021, arXiv 2109.10086, equation 1 with the maximum
    of section 3.1).

    Args:
        language_model: the backbone with the head; the head's parameters become those of this module.
    """

    def __init__(self, language_model: PreTrainedModel) -> None:
        super().__init__()
        self._language_model = (language_model,)  # in a tuple, so that its backbone is no part of this module
        self.transform = transform_of(language_model)
        decoder = language_model.get_output_embeddings()
        self.bias = decoder.bias
        table = language_model.get_input_embeddings().weight
        self._words = (decoder.weight,)
        self.own_words = None if decoder.weight is table else decoder.weight

    def forward(self, hidden_TD: Tensor, starts: Tensor, batch: PackedBatch) -> Sparse:  # noqa: ARG002 - one signature
        """``[T, H]`` -> weights of words of each text: ``[N, K]``."""
        scores_F, texts_F, words_F = best_words(
            self.transform(hidden_TD.float()), self._words[0], self.bias, starts.tolist()
        )
        return Sparse.of_pairs(scores_F.log1p(), texts_F, words_F, len(starts) - 1)

    @property
    def dim(self) -> int:
        """Dimensions of the short vectors that stand for sparse ones."""
        return BUCKETS

    def layer_states(self) -> list[Mapping[str, Tensor]]:
        """None: the weights are stored with those of the backbone."""
        return []

    def whole(self, backbone: PreTrainedModel) -> PreTrainedModel:  # noqa: ARG002 - one signature for all heads
        """The language model: the backbone and this head."""
        return self._language_model[0]


def transform_of(language_model: PreTrainedModel) -> nn.Module:
    """What turns hidden states into those that are compared with the vectors of words.

    Raises:
        ValueError: an architecture whose head has another form.
    """
    model: Any = language_model
    if hasattr(model, "cls"):  # BERT
        return cast("nn.Module", model.cls.predictions.transform)
    if hasattr(model, "lm_head"):  # RoBERTa, MPNet
        return nn.Sequential(model.lm_head.dense, nn.GELU(), model.lm_head.layer_norm)
    if hasattr(model, "vocab_transform"):  # DistilBERT
        return nn.Sequential(model.vocab_transform, model.activation, model.vocab_layer_norm)
    if hasattr(model, "head"):  # ModernBERT
        return cast("nn.Module", model.head)
    raise ValueError(f"biencoder does not know the masked-language head of {type(language_model).__name__}")
