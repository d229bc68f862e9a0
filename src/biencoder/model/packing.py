"""Packed rows: texts end to end as one row of tokens with lengths, and no padding.

Shapes: T tokens in the row, N texts, H heads, E size of a head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biencoder.device.choice import facts
from biencoder.model.tokens import Tokens


@dataclass(frozen=True)
class Block:
    """``texts`` neighbours of one ``length``, from token ``start`` of the row: attention over them is one product."""

    start: int
    texts: int
    length: int

    @property
    def tokens(self) -> slice:
        """Where the block is in the row."""
        return slice(self.start, self.start + self.texts * self.length)

    def heads_first(self, row_THE: Tensor) -> Tensor:
        """A view of the block's part of a row: ``[N, H, L, E]``."""
        texts_NLHE: Tensor = row_THE[self.tokens].unflatten(0, (self.texts, self.length))
        return texts_NLHE.transpose(1, 2)

    def cut(self, at_once: int) -> "Iterator[Block]":
        """The same texts in blocks of at most ``at_once`` of them."""
        for first in range(0, self.texts, at_once):
            texts = min(at_once, self.texts - first)
            yield Block(self.start + first * self.length, texts, self.length)


@dataclass(frozen=True)
class Packing:
    """Where the texts lie in a packed row.

    Attention costs least when texts of equal length are neighbours. The row may go on after the last text; attention
    gives zeros there.

    Attributes:
        lengths: of the texts.
        device: of the row.
        used: one token of each text, when the output of only these is used, and then any; None for all tokens.
    """

    lengths: tuple[int, ...]
    device: torch.device
    used: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.lengths)

    @cached_property
    def starts(self) -> Tensor:
        """Where each text begins, and the end of the row: ``[N + 1]`` int32 (``cu_seqlens`` of flash attention)."""
        lengths = torch.tensor((0, *self.lengths), dtype=torch.int32)
        return lengths.cumsum(0, dtype=torch.int32).to(self.device)

    @cached_property
    def blocks(self) -> list[Block]:
        """The row cut into neighbouring texts of equal length."""
        blocks, start = [], 0
        for length, texts in groupby(self.lengths):
            blocks.append(Block(start, sum(1 for _ in texts), length))
            start = blocks[-1].tokens.stop
        return blocks


@dataclass(frozen=True)
class PackedBatch:
    """Texts as one row of tokens, end to end.

    Attributes:
        input_ids: ``[T]`` int64, the tokens of text 0, then the tokens of text 1, and so on.
        lengths: the number of tokens of each of the N texts; their sum is T.
        token_type_ids: ``[T]`` int64, for callers that tokenise pairs of segments themselves.
    """

    input_ids: Tensor
    lengths: tuple[int, ...]
    token_type_ids: Tensor | None = None

    @property
    def packing(self) -> Packing:
        """Where the texts lie in the row."""
        return Packing(self.lengths, self.input_ids.device)

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
        """Tokens in the row."""
        return self.batch.input_ids.numel()


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
    """Chunks of the same texts as :func:`chunks` cuts them for ``max_tokens``, out of chunks of as many or more."""
    if all(part.tokens <= max_tokens or len(part.index) == 1 for part in parts):
        return list(parts)
    sequences: dict[int, Tokens] = {}
    for part in parts:
        texts = np.split(part.batch.input_ids.numpy(), np.cumsum(part.batch.lengths)[:-1])
        sequences.update(zip(part.index.tolist(), texts, strict=True))
    return list(chunks([sequences[i] for i in range(len(sequences))], max_tokens))


def _chunk(sequences: Sequence[Sequence[int] | Tokens], index: NDArray[np.int64]) -> Chunk:
    return Chunk(pack([sequences[i] for i in index]), torch.from_numpy(index.copy()))
