"""Texts to packed rows of tokens: prompts, tokenising, sorting by length, cutting into chunks of bounded size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from biencoder.device.choice import facts

Tokens = NDArray[np.int32]  # of one text
TEXTS_AT_ONCE = 256  # tokenizers keep offsets, words and what is cut off beside the ids: many times their memory
LETTERS_A_TOKEN = 1000  # of a text, as many for each token that it may have are tokenised: 250 times the usual number


@dataclass(frozen=True)
class PackedBatch:
    """Texts as one row of tokens, end to end.

    Attributes:
        input_ids: ``[T]`` int64, the tokens of text 0, then those of text 1, and so on.
        lengths: the number of tokens of each of the N texts; their sum is T.
        token_type_ids: ``[T]`` int64, for callers that tokenise pairs of segments themselves.
    """

    input_ids: Tensor
    lengths: tuple[int, ...]
    token_type_ids: Tensor | None = None

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on ``device``."""
        if self.input_ids.device == device:
            return self
        types = None if self.token_type_ids is None else facts(device).receive(self.token_type_ids, device)
        return PackedBatch(facts(device).receive(self.input_ids, device), self.lengths, types)


@dataclass(frozen=True)
class Chunk:
    """A part of a list of texts that goes through the model at once.

    Attributes:
        batch: the packed texts, sorted by length.
        index: ``[N]`` int64, their places in the list.
    """

    batch: PackedBatch
    index: Tensor

    @property
    def tokens(self) -> int:
        """How many there are in the row."""
        return self.batch.input_ids.numel()


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[Tokens]:
    """Token ids of each text with the model's special tokens, cut to ``max_length`` tokens.

    What is cut off is not tokenised first: ten megabytes would take gigabytes.

    A text that yields no token at all (an empty one, for a tokenizer without special tokens) becomes its end-of-text or
    padding token: a vector needs something to stand on.
    """
    filler = next((t for t in (tokenizer.eos_token_id, tokenizer.pad_token_id) if t is not None), 0)
    ids: list[Tokens] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        encoded = tokenizer(
            [text[: LETTERS_A_TOKEN * max_length] for text in texts[start : start + TEXTS_AT_ONCE]],
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids += [np.array(row or [filler], dtype=np.int32) for row in encoded["input_ids"]]
    return ids


def pack(sequences: Sequence[Sequence[int] | Tokens]) -> PackedBatch:
    """One row out of token lists, in the order given."""
    flat = np.concatenate([np.asarray(s, dtype=np.int64) for s in sequences])
    return PackedBatch(torch.from_numpy(flat), tuple(len(s) for s in sequences))


def chunks(sequences: Sequence[Sequence[int] | Tokens], max_tokens: int) -> Iterator[Chunk]:
    """Cut token lists into chunks of at most ``max_tokens`` tokens, longest texts first.

    Texts of equal length end up as neighbours, where attention over them is one product. A single text that is longer
    than ``max_tokens`` is a chunk of its own.
    """
    lengths = np.fromiter((len(s) for s in sequences), dtype=np.int64, count=len(sequences))
    order = np.argsort(-lengths, kind="stable")
    first, tokens = 0, 0
    for place, i in enumerate(order):
        if tokens and tokens + lengths[i] > max_tokens:
            yield _chunk(sequences, order[first:place])
            first, tokens = place, 0
        tokens += int(lengths[i])
    if len(order):
        yield _chunk(sequences, order[first:])


def cut_smaller(parts: Sequence[Chunk], max_tokens: int) -> list[Chunk]:
    """Chunks of the same texts as :func:`chunks` cuts them for ``max_tokens``, out of those cut for as many or more."""
    if all(part.tokens <= max_tokens or len(part.index) == 1 for part in parts):
        return list(parts)
    sequences: dict[int, Tokens] = {}
    for part in parts:
        texts = np.split(part.batch.input_ids.numpy(), np.cumsum(part.batch.lengths)[:-1])
        sequences.update(zip(part.index.tolist(), texts, strict=True))
    return list(chunks([sequences[i] for i in range(len(sequences))], max_tokens))


def _chunk(sequences: Sequence[Sequence[int] | Tokens], index: np.ndarray) -> Chunk:
    return Chunk(pack([sequences[i] for i in index]), torch.from_numpy(index.copy()))
