"""Masks of dropout that follow from a text, so that no rank, no chunk and no neighbour in a packed row changes them.

Whether a number stays is a function of the text's key, the dropout in the model, the place in the text and the channel;
in attention, of the head and both places. Nothing is drawn in an order, so the backward pass can make a mask again.

The generator is counter-based (Salmon et al. 2011). SplitMix64 (Steele et al. 2014) makes keys out of keys, and a mixer
of 32 bits (Wellons 2018) makes two draws of 16 bits out of a key and a counter. ``kernels/vectors.h`` draws the same.

Shapes: N texts, R rows, C columns, H heads, L tokens of a text, W words of 32 bits.
"""

import ctypes
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from biencoder.config.choices import CPU
from biencoder.model.kernels.library import address, kernels

DRAWS = 2**16  # a mask is decided by 16 random bits
BLOCK = 32  # neighbouring columns, of which each two share a word: the first half has the lower bits of all
HALF = BLOCK // 2
IN_ATTENTION = 2**32  # where the places of attention begin: beyond those of tokens, which make keys too
HEADS = 2**16  # places that each attention takes
AT_ONCE = 2**16  # words that a CPU makes at a time, so that they stay in its cache

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64
_MIX, _MIX_AGAIN = 0x7FEB352D, 0x846CA68B - 2**32  # the mixer, signed


@dataclass(frozen=True)
class TextKeys:
    """What all masks of a forward pass follow from: 64 random bits for each text.

    Attributes:
        step: the key of the step, for what belongs to no text.
        texts_N: int64 ``[N]``, the keys of the texts.
    """

    step: int
    texts_N: Tensor

    @classmethod
    def of(cls, step: int, numbers_N: Tensor) -> "TextKeys":
        """Keys of the texts that have these numbers, int64 ``[N]``, in the batch of the step with that key."""
        return cls(step, key_of(step, numbers_N))

    @classmethod
    def drawn(cls, texts: int) -> "TextKeys":
        """Keys by PyTorch's CPU generator, which moves on by one draw, where no step gave any."""
        return cls.of(int(torch.randint(2**63 - 1, ())), torch.arange(texts))

    def only(self, texts: Any) -> "TextKeys":
        """Those of some texts, by what indexes a tensor."""
        return replace(self, texts_N=self.texts_N[texts])

    def to(self, device: torch.device) -> "TextKeys":
        """The same on ``device``."""
        return replace(self, texts_N=self.texts_N.to(device, non_blocking=True))


@dataclass(frozen=True)
class Masks:
    """The masks of one dropout in one forward pass.

    Attributes:
        keys: int64; None where nothing is dropped.
        place: where this dropout is in the sequence that each key begins.
        dropped: the probability with which a number is dropped, in multiples of 2^-16.
    """

    keys: Tensor | None
    place: int
    dropped: int

    @property
    def factor(self) -> float:
        """What keeps the expectation: one over the exact probability to stay."""
        return DRAWS / (DRAWS - self.dropped)

    @property
    def words(self) -> tuple[Any, ...]:
        """Keys, place, probability and factor as the kernels take them."""
        keys = self.keys if self.dropped else None
        return address(keys), ctypes.c_uint64(self.place), ctypes.c_uint32(self.dropped), ctypes.c_float(self.factor)

    def _kernels(self) -> ctypes.CDLL | None:
        return kernels() if self.keys is not None and self.keys.device.type == CPU else None


class RowMasks(Masks):
    """Masks of rows of a matrix, a key each."""

    @classmethod
    def of(cls, keys_R: Tensor | None, site: int, probability: float) -> "RowMasks":
        """Those of the dropout with the number ``site`` in its model."""
        return cls(keys_R, site, _dropped(probability))

    def keep(self, columns: int) -> Tensor:
        """Which numbers stay: int8 ``[R, C]``. PyTorch multiplies by a bool four times slower."""
        assert self.keys is not None
        if (library := self._kernels()) is not None:
            keep_RC = torch.empty(len(self.keys), columns, dtype=torch.int8)
            library.row_masks(address(keep_RC), *self.words[:3], *keep_RC.shape, torch.get_num_threads())
            return keep_RC
        counters_W1 = torch.arange(_words_of(columns), device=self.keys.device)[:, None]
        return _kept(key_of(self.keys, self.place), counters_W1, self.dropped)[:, :columns, 0].contiguous()


class WeightMasks(Masks):
    """Masks of the weights of attention within texts, a key each."""

    @classmethod
    def of(cls, keys: TextKeys, site: int, probability: float) -> "WeightMasks":
        """Those of the attention with the number ``site`` in its model."""
        return cls(keys.texts_N, IN_ATTENTION + site * HEADS, _dropped(probability))

    def only(self, texts: Any) -> "WeightMasks":
        """Those of some texts, by what indexes a tensor."""
        return self if self.keys is None else replace(self, keys=self.keys[texts])

    def keep(self, heads: int, length: int) -> Tensor:
        """Which weights stay, in texts of up to ``length`` tokens: int8 ``[N, H, L, L]``, query by key."""
        keys_NH = self._of_heads(heads)
        if (library := self._kernels()) is not None:
            kept_NHLL = torch.empty(*keys_NH.shape, length, length, dtype=torch.int8)
            library.weight_masks(address(kept_NHLL), *self.words[:3], *kept_NHLL.shape[:3], torch.get_num_threads())
            return kept_NHLL
        queries, keys = (torch.arange(n, device=keys_NH.device) for n in (_words_of(length), length))
        keep = _kept(keys_NH.flatten(), queries[:, None] + keys * DRAWS, self.dropped)
        keep_NHLL: Tensor = keep[:, :length].unflatten(0, keys_NH.shape)
        return keep_NHLL

    def keep_from(self, query_N: Tensor, heads: int, length: int) -> Tensor:
        """Which weights from one place of each text stay: int8 ``[N, H, 1, L]``."""
        word_N, is_upper_N = query_N // BLOCK * HALF + query_N % HALF, query_N % BLOCK >= HALF
        counters_NL = word_N[:, None] + torch.arange(length, device=query_N.device) * DRAWS
        words_NHL = _words(self._of_heads(heads)[..., None], counters_NL[:, None])
        draws = torch.where(is_upper_N[:, None, None], words_NHL >> 16, words_NHL) & (DRAWS - 1)
        return (draws >= self.dropped).to(torch.int8).unsqueeze(2)

    def _of_heads(self, heads: int) -> Tensor:
        assert self.keys is not None
        return key_of(self.keys[:, None], torch.arange(heads, device=self.keys.device) + self.place)


NO_WEIGHT_MASKS = WeightMasks(None, 0, 0)


def key_of(key: Tensor | int, place: Tensor | int) -> Tensor:
    """64 random bits for a place in the sequence that a key begins, one of them a tensor: SplitMix64, int64.

    PyTorch has no arithmetic of uint64; int64 wraps to the same bits.
    """
    offset = (place + 1) * _signed(_STEP) if isinstance(place, Tensor) else _signed((place + 1) * _STEP)
    z: Tensor = (key if isinstance(key, Tensor) else _signed(key)) + offset  # type: ignore[assignment]
    z = (z ^ _shifted(z, 30, 64)) * _signed(_FIRST)
    z = (z ^ _shifted(z, 27, 64)) * _signed(_SECOND)
    return z ^ _shifted(z, 31, 64)


def _dropped(probability: float) -> int:
    return min(round(probability * DRAWS), DRAWS - 1)


def _words_of(columns: int) -> int:
    return -(-columns // BLOCK) * HALF


def _kept(keys_R: Tensor, counters_WJ: Tensor, dropped: int) -> Tensor:
    """Int8 ``[R, 2W, J]``: of each block of words, the draws in their lower bits, then those in their upper ones."""
    words, others = counters_WJ.shape
    keep = torch.empty(len(keys_R), 2 * words, others, dtype=torch.int8, device=keys_R.device)
    blocks, counters_WJ = keep.view(len(keys_R), -1, 2, HALF, others), counters_WJ.to(torch.int32)
    rows = max(1, AT_ONCE // counters_WJ.numel()) if keys_R.device.type == CPU else len(keys_R)
    for first in range(0, len(keys_R), rows):
        part = slice(first, first + rows)
        draws = _words(keys_R[part, None, None], counters_WJ).view(torch.int16).view(-1, words // HALF, HALF, others, 2)
        draws = draws.bitwise_xor_(-DRAWS // 2).ge_(dropped - DRAWS // 2)  # compares unsigned numbers
        blocks[part] = draws.permute(0, 1, 4, 2, 3)
    return keep


def _words(keys: Tensor, counters: Tensor) -> Tensor:
    """32 random bits for each key and counter: the mixer of Wellons, int32 with the bits of uint32."""
    x = counters.to(torch.int32) ^ keys.to(torch.int32)
    x.bitwise_xor_(_shifted(x, 16, 32)).mul_(_MIX)
    x.bitwise_xor_(_shifted(x, 15, 32)).bitwise_xor_((keys >> 32).to(torch.int32)).mul_(_MIX_AGAIN)
    return x.bitwise_xor_(_shifted(x, 16, 32))


def _shifted(x: Tensor, places: int, width: int) -> Tensor:
    """Shifted to the right with zeros, whatever the sign."""
    return (x >> places).bitwise_and_((1 << (width - places)) - 1)


def _signed(bits: int) -> int:
    """The int64 with the lower 64 of these bits."""
    return (bits + 2**63) % 2**64 - 2**63
