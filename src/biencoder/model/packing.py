"""Packed rows: texts end to end as one row of tokens with lengths, and no padding.

Where attention cannot take such a row, its tokens are moved into a few padded matrices, and back.

Shapes: T tokens in the row, N texts, H heads, E size of a head.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biencoder.device.choice import facts
from biencoder.model.masks import TextKeys
from biencoder.model.tokens import Tokens

MOST_BUCKETS = 8


@dataclass(frozen=True)
class Block:
    """``texts`` neighbours of one ``length``, from token ``start`` of the row: attention over them is one product.

    The first of them is text number ``first`` of the row.
    """

    start: int
    texts: int
    length: int
    first: int

    @property
    def numbers(self) -> slice:
        """Which texts of the row they are."""
        return slice(self.first, self.first + self.texts)

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
            yield Block(self.start + first * self.length, texts, self.length, self.first + first)


@dataclass(frozen=True)
class Bucket:
    """Some texts, each padded to the length of the longest of them.

    Attributes:
        texts: how many.
        length: of the longest.
    """

    texts: int
    length: int


@dataclass(frozen=True)
class Padding:
    """The texts of a row in at most :data:`MOST_BUCKETS` padded matrices, one behind the other: P places in all.

    Attributes:
        buckets: the matrices, those of the longest texts first.
        texts: ``[N]`` int64, the texts in the order in which the matrices have them.
        to_row: ``[P]`` int64, the token at each place; any token where there is padding.
        from_row: ``[T]`` int64, the place of each token.
        real: ``[P]`` bool, False where there is padding.
    """

    buckets: list[Bucket]
    texts: Tensor
    to_row: Tensor
    from_row: Tensor
    real: Tensor

    def matrices(self, places_P: Tensor) -> list[Tensor]:
        """What the P places hold, cut into the matrices: ``[N, L]`` each, and further dimensions."""
        parts = places_P.split([bucket.texts * bucket.length for bucket in self.buckets])
        return [x.unflatten(0, (b.texts, b.length)) for x, b in zip(parts, self.buckets, strict=True)]

    @property
    def matrix_texts(self) -> tuple[Tensor, ...]:
        """Which texts each matrix has: ``[N]`` int64 each."""
        matrices: tuple[Tensor, ...] = self.texts.split([bucket.texts for bucket in self.buckets])
        return matrices


@dataclass(frozen=True)
class Packing:
    """Where the texts lie in a packed row.

    Attention costs least when texts of equal length are neighbours. The row may go on after the last text; attention
    gives finite numbers of no meaning there.

    Attributes:
        lengths: of the texts.
        device: of the row.
        used: one token of each text, when the output of only these is used, and then any; None for all tokens.
        keys: from which the masks of dropout follow; None for the device's own generator.
    """

    lengths: tuple[int, ...]
    device: torch.device
    used: Tensor | None = None
    keys: TextKeys | None = None

    def using(self, tokens: Tensor) -> "Packing":
        """The same places, of which only the output of some tokens is used."""
        return self._with("used", tokens)

    def keyed(self, keys: TextKeys | None) -> "Packing":
        """The same places, with other masks of dropout."""
        return self._with("keys", keys)

    def _with(self, name: str, value: Any) -> "Packing":
        """A copy that shares what is known of the places."""
        shared = copy(self)
        object.__setattr__(shared, name, value)
        return shared

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
        return facts(self.device).receive(lengths.cumsum(0, dtype=torch.int32), self.device)

    def starts_up_to(self, rows: int) -> Tensor:
        """The same for a row that goes on behind the last text, cut there into further texts that are no longer."""
        if rows == self.tokens:
            return self.starts
        if rows not in self._longer_starts:
            further = torch.arange(self.tokens, rows, self.longest, dtype=torch.int32)[1:]
            starts = torch.cat([torch.tensor((0, *self.lengths)).cumsum(0), further, torch.tensor([rows])]).int()
            self._longer_starts[rows] = facts(self.device).receive(starts, self.device)
        return self._longer_starts[rows]

    @cached_property
    def _longer_starts(self) -> dict[int, Tensor]:
        return {}

    @property
    def used_places(self) -> Tensor:
        """Where in its text the used token of each text is: ``[N]`` int64."""
        assert self.used is not None
        return self.used[: len(self.lengths)] - self.starts[:-1]

    @cached_property
    def of_single_tokens(self) -> "Packing":
        """As many texts, of one token each."""
        return Packing((1,) * len(self.lengths), self.device)

    @cached_property
    def padding(self) -> Padding:
        """The texts in padded matrices. Texts of up to :data:`MOST_BUCKETS` different lengths are not padded."""
        lengths = np.array(self.lengths, dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        starts = np.cumsum(lengths) - lengths
        buckets, to_row, real = [], [], []
        for texts in np.split(order, _bucket_ends(lengths[order])):
            place = np.arange(lengths[texts[0]])
            is_real = place < lengths[texts, None]
            buckets.append(Bucket(len(texts), len(place)))
            to_row.append(np.where(is_real, starts[texts, None] + place, 0).ravel())
            real.append(is_real.ravel())
        token, is_token = np.concatenate(to_row), np.concatenate(real)
        from_row = np.empty(self.tokens, dtype=np.int64)
        from_row[token[is_token]] = np.flatnonzero(is_token)
        tensors = (torch.from_numpy(each) for each in (order, token, from_row, is_token))
        return Padding(buckets, *(facts(self.device).receive(tensor, self.device) for tensor in tensors))

    @cached_property
    def blocks(self) -> list[Block]:
        """The row cut into neighbouring texts of equal length."""
        blocks: list[Block] = []
        start = first = 0
        for length, texts in groupby(self.lengths):
            blocks.append(Block(start, sum(1 for _ in texts), length, first))
            start, first = blocks[-1].tokens.stop, blocks[-1].numbers.stop
        return blocks


def _bucket_ends(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the next bucket begins among texts, given their lengths, longest first.

    Buckets hold one length each, if there are few lengths, else about as many tokens each.
    """
    bucket = -lengths
    if len(np.unique(lengths)) > MOST_BUCKETS:
        bucket = (np.cumsum(lengths) - 1) * MOST_BUCKETS // lengths.sum()
    return np.flatnonzero(np.diff(bucket)) + 1


@dataclass(frozen=True)
class PackedBatch:
    """Texts as one row of tokens, end to end.

    Attributes:
        input_ids: ``[T]`` int64, the tokens of text 0, then the tokens of text 1, and so on; ``~id`` for a token that
            the model reads and no head compares.
        lengths: the number of tokens of each of the N texts; their sum is T.
        token_type_ids: ``[T]`` int64, for callers that tokenise pairs of segments themselves.
        keys: of the texts, from which the masks of dropout follow; None to draw them.
    """

    input_ids: Tensor
    lengths: tuple[int, ...]
    token_type_ids: Tensor | None = None
    keys: TextKeys | None = None

    @cached_property
    def packing(self) -> Packing:
        """Where the texts lie in the row."""
        return Packing(self.lengths, self.input_ids.device)

    def keyed(self, keys: TextKeys) -> "PackedBatch":
        """The same texts, with the masks of dropout that follow from ``keys``."""
        return self._with("keys", keys)

    @cached_property
    def is_compared(self) -> Tensor:
        """Which tokens a head with a vector for each token compares: bool ``[T]``."""
        return self.input_ids >= 0

    @cached_property
    def is_marked(self) -> list[bool]:
        """For each text, whether its first token is marked: such a text is looked up in a table of weights."""
        marked: list[bool] = (~self.is_compared[self.packing.starts[:-1].long()]).tolist()
        return marked

    def only(self, texts: Sequence[int]) -> "PackedBatch":
        """Some of the texts, by number."""
        rows = self.input_ids.split(self.lengths)
        types = None if self.token_type_ids is None else self.token_type_ids.split(self.lengths)
        return PackedBatch(
            torch.cat([rows[text] for text in texts]),
            tuple(self.lengths[text] for text in texts),
            None if types is None else torch.cat([types[text] for text in texts]),
            None if self.keys is None else self.keys.only(list(texts)),
        )

    def as_read(self) -> "PackedBatch":
        """The batch as a model reads it."""
        return self._with("input_ids", torch.where(self.is_compared, self.input_ids, ~self.input_ids))

    def _with(self, name: str, value: Any) -> "PackedBatch":
        """A copy that shares what is known of the places."""
        shared = copy(self)
        object.__setattr__(shared, name, value)
        return shared

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on ``device``."""
        if self.input_ids.device == device:
            return self
        types = None if self.token_type_ids is None else facts(device).receive(self.token_type_ids, device)
        keys = None if self.keys is None else self.keys.to(device)
        moved = PackedBatch(facts(device).receive(self.input_ids, device), self.lengths, types, keys)
        _ = moved.packing.starts  # they travel with the batch, so that no layer waits for them
        _ = moved.packing.starts_up_to(facts(device).rows_of_products(moved.packing.tokens))
        return moved


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

    def keyed(self, keys: TextKeys) -> "Chunk":
        """The same texts, with the masks of dropout that follow from ``keys``."""
        return Chunk(self.batch.keyed(keys), self.index)

    def to(self, device: torch.device) -> "Chunk":
        """The same chunk on ``device``."""
        return Chunk(self.batch.to(device), facts(device).receive(self.index, device))


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
        texts = np.split(part.batch.input_ids.cpu().numpy(), np.cumsum(part.batch.lengths)[:-1])
        sequences.update(zip(part.index.tolist(), texts, strict=True))
    return list(chunks([sequences[i] for i in range(len(sequences))], max_tokens))


def _chunk(sequences: Sequence[Sequence[int] | Tokens], index: NDArray[np.int64]) -> Chunk:
    return Chunk(pack([sequences[i] for i in index]), torch.from_numpy(index.copy()))
