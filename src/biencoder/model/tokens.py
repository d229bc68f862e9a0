"""Texts to token ids."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

Tokens = NDArray[np.int32]  # of one text; ~id stands for a token that the model reads and no head compares
TEXTS_AT_ONCE = 256  # tokenizers keep offsets, words and what is cut off beside the ids: many times their memory
LETTERS_A_TOKEN = 1000  # letters of a text that are tokenised for each token it may have: 250 times the usual number
LETTERS_COUNTED = 1_000_000  # letters of a text whose tokens are counted: more tokens than any model takes


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[Tokens]:
    """Token ids of each text with the model's special tokens, cut to ``max_length`` tokens.

    The rest of a long text is cut off before it is tokenised: ten megabytes of text would take gigabytes.

    A text that yields no token at all (an empty one, for a tokenizer without special tokens) becomes the tokenizer's
    end-of-text or padding token: a vector needs something to stand on.
    """
    filler = next((t for t in (tokenizer.eos_token_id, tokenizer.pad_token_id) if t is not None), 0)
    ids: list[Tokens] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        beginnings = [text[: LETTERS_A_TOKEN * max_length] for text in texts[start : start + TEXTS_AT_ONCE]]
        ids += [np.array(row or [filler], dtype=np.int32) for row in _ids(tokenizer, beginnings, max_length)]
    return ids


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[list[int]]:
    first = texts[:1] if tokenizer.is_fast else texts
    encoded: list[list[int]] = tokenizer(
        first,
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    # Its library is set up by now to cut texts and to add special tokens, and is faster without transformers around it.
    others = tokenizer.backend_tokenizer.encode_batch_fast(texts[1:]) if tokenizer.is_fast else []
    return encoded + [each.ids for each in others]


def expanded(texts: Sequence[Tokens], length: int, mask: int) -> list[Tokens]:
    """Mask tokens behind each text up to ``length`` tokens (Khattab and Zaharia 2020, section 3.2)."""
    return [np.concatenate([ids, np.full(max(0, length - len(ids)), mask, np.int32)]) for ids in texts]


def marked(texts: Sequence[Tokens], skipped: NDArray[np.int32]) -> list[Tokens]:
    """The texts with the tokens ``skipped`` marked as not to be compared, see :data:`Tokens`."""
    return [np.where(np.isin(ids, skipped), ~ids, ids) for ids in texts]


def skipped_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> NDArray[np.int32]:
    """The tokens that are one of some words; a word that is no token of the vocabulary is left out."""
    return np.array(tokenizer.convert_tokens_to_ids(list(known_words(tokenizer, words))), np.int32)


def unspoken(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that are no part of what a person wrote: all but the one for unknown words."""
    return [number for number in tokenizer.all_special_ids if number != tokenizer.unk_token_id]


def known_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> tuple[str, ...]:
    """Those of some words that are tokens of the vocabulary."""
    unknown = (None, tokenizer.unk_token_id)
    return tuple(
        word for word in words if word != tokenizer.unk_token and tokenizer.convert_tokens_to_ids(word) not in unknown
    )


def token_counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], NDArray[np.int64]]:
    """A function that counts each text's tokens, special tokens included; of a huge text, only the beginning."""

    def count(texts: list[str]) -> NDArray[np.int64]:
        beginnings = [text[:LETTERS_COUNTED] for text in texts]
        ids = tokenizer(beginnings, truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
        return np.array([len(text) for text in ids], dtype=np.int64)

    return count
