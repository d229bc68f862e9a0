"""The best score of each word over the tokens of a text, without a score for each token and word at once.

Shapes: T tokens of all texts, H hidden size, V words of the vocabulary, F pairs of a text and a word that were found.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

TOKENS_AT_ONCE = 512  # whose scores for all words are held: 60 MB for 30,000 words


def best_words(hidden_TH: Tensor, words_VH: Tensor, bias_V: Tensor, starts: Sequence[int]) -> tuple[Tensor, ...]:
    """The largest ``hidden · word + bias`` over the tokens of each text, where it is above 0.

    Neither pass holds more than :data:`TOKENS_AT_ONCE` rows of scores (of one text, if that is longer): what is kept
    for the backward pass is the number of the best token.

    Args:
        hidden_TH: of all tokens, text by text.
        words_VH: a vector of each word.
        bias_V: added to its scores.
        starts: where each text begins, and T.

    Returns:
        Scores ``[F]``, texts ``[F]`` in order, words ``[F]`` in order within a text.
    """
    found: tuple[Tensor, ...] = _BestWords.apply(  # type: ignore[no-untyped-call]
        hidden_TH, words_VH, bias_V, list(starts)
    )
    return found


class _BestWords(torch.autograd.Function):
    """A maximum sends its gradient to the one token that it comes from."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, words_VH: Tensor, bias_V: Tensor, starts: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, texts, words, tokens = [], [], [], []
        for first, last in _blocks(starts):
            start = starts[first]
            scores = torch.addmm(bias_V, hidden_TH[start : starts[last]], words_VH.T)
            for text in range(first, last):
                best_V, token_V = scores[starts[text] - start : starts[text + 1] - start].max(dim=0)
                is_found = (best_V > 0).nonzero().squeeze(1)
                values.append(best_V[is_found])
                words.append(is_found)
                texts.append(torch.full_like(is_found, text))
                tokens.append(token_V[is_found] + starts[text])
        word_F, text_F = torch.cat(words), torch.cat(texts)
        ctx.save_for_backward(hidden_TH, words_VH, word_F, torch.cat(tokens))
        ctx.mark_non_differentiable(text_F, word_F)
        return torch.cat(values), text_F, word_F

    @staticmethod
    def backward(ctx: Any, gradient_F: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden_TH, words_VH, word_F, token_F = ctx.saved_tensors
        to_hidden, to_words, to_bias = None, None, None
        size = (len(hidden_TH), len(words_VH))
        if ctx.needs_input_grad[0]:
            to_hidden = torch.sparse.mm(_matrix(token_F, word_F, gradient_F, size), words_VH)
        if ctx.needs_input_grad[1]:
            to_words = torch.sparse.mm(_matrix(word_F, token_F, gradient_F, size[::-1]), hidden_TH)
        if ctx.needs_input_grad[2]:
            to_bias = gradient_F.new_zeros(len(words_VH)).index_add(0, word_F, gradient_F)
        return to_hidden, to_words, to_bias, None


def _matrix(rows_F: Tensor, columns_F: Tensor, values_F: Tensor, size: tuple[int, ...]) -> Tensor:
    return torch.sparse_coo_tensor(torch.stack([rows_F, columns_F]), values_F, size, check_invariants=False)


def _blocks(starts: list[int]) -> Iterator[tuple[int, int]]:
    """The first text of each block, and the one after its last."""
    first = 0
    for text in range(1, len(starts)):
        is_last = text == len(starts) - 1
        if is_last or starts[text + 1] - starts[first] > TOKENS_AT_ONCE:
            yield first, text
            first = text
