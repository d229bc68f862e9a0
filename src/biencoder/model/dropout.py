"""Dropout whose masks follow from the texts that go through a model, see :mod:`~biencoder.model.masks`.

Shapes: T tokens in a packed row, N texts, L tokens of the longest.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from biencoder.config.choices import CPU
from biencoder.model.masks import RowMasks, TextKeys, key_of

SITE = "biencoder_site"  # the attribute that holds a module's number in its model
USES = 2**16  # sites beyond which a module counts anew, where a model uses it several times


class RowKeys:
    """What a forward pass tells the dropouts in its model: which text and place each row belongs to.

    Args:
        step: the key of the step, see :class:`~biencoder.model.masks.TextKeys`.
        make: gives the keys of the tokens, when the first dropout asks: int64 ``[1, T]`` for a packed row, ``[N, L]``
            for padded texts.
    """

    def __init__(self, step: int, make: Callable[[], Tensor]) -> None:
        self.step = step
        self._make = make
        self.uses: Counter[int] = Counter()  # of each site so far

    @cached_property
    def tokens(self) -> Tensor:
        """Keys of the tokens: int64 ``[1, T]`` or ``[N, L]``."""
        return self._make()

    def only(self, rows: Tensor) -> "RowKeys":
        """For some rows of a packed row."""
        return RowKeys(self.step, lambda: self.tokens[:, rows])

    def as_now(self) -> "RowKeys":
        """The same, as if no dropout came after those that have asked so far."""
        copied = RowKeys(self.step, lambda: self.tokens)
        copied.uses = self.uses.copy()
        return copied

    def of(self, shape: Sequence[int]) -> Tensor:
        """The key of each row of a tensor ``[…, L, C]``: int64 ``[R]``.

        Several rows of a token, of heads that is, each have a key of their own. Where a model drops out of what belongs
        to no token, a table of positions say, rows get the key of the step and their number.
        """
        texts, length = self.tokens.shape
        rows = math.prod(shape[:-1])
        heads, rest = divmod(rows, texts * length)
        if rows == texts * length:
            return self.tokens.flatten()
        if rest or len(shape) < 2 or shape[0] % texts or shape[-2] != length:
            return key_of(self.step, torch.arange(rows, device=self.tokens.device))
        return key_of(self.tokens[:, None], torch.arange(heads, device=self.tokens.device)[:, None]).flatten()


_active: ContextVar[RowKeys | None] = ContextVar("row keys", default=None)


@contextlib.contextmanager
def dropping(keys: RowKeys | None) -> Iterator[None]:
    """Inside of this block, dropout takes its masks from these keys; from the device's own generator for None."""
    token = _active.set(keys)
    try:
        yield
    finally:
        _active.reset(token)


@contextlib.contextmanager
def dropping_rows(rows: Tensor) -> Iterator[None]:
    """Inside of this block, only these rows of the packed row go on."""
    keys = _active.get()
    with dropping(None if keys is None else keys.only(rows)):
        yield


def carried(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the masks of the forward pass under way, also when a backward pass calls it again."""
    keys = _active.get()
    if keys is None:
        return function
    then = keys.as_now()

    def run(*args: Any, **kwargs: Any) -> Any:
        if _active.get() is keys:
            return function(*args, **kwargs)
        with dropping(then.as_now()):
            return function(*args, **kwargs)

    return run


def site_of(module: nn.Module) -> int:
    """The number of a module in its model, by which dropouts differ."""
    return int(getattr(module, SITE, 0))


def masks_of(dropout: nn.Dropout, shape: Sequence[int]) -> RowMasks:
    """The masks that a dropout on a CPU, or inside of :func:`dropping`, applies to a tensor of that shape now."""
    if not dropout.training or not dropout.p:
        return RowMasks(None, 0, 0)
    keys = _active.get()
    if keys is None:
        return RowMasks.of(TextKeys.drawn(math.prod(shape[:-1])).texts_N, site_of(dropout), dropout.p)
    site = site_of(dropout)
    keys.uses[site] += 1
    return RowMasks.of(keys.of(shape), site + USES * (keys.uses[site] - 1), dropout.p)


class Dropout(nn.Dropout):
    """``nn.Dropout`` with the same distribution, whose masks follow from the texts.

    On a device other than a CPU, and outside of :func:`dropping`, it is the very same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Zero each element with probability ``p`` while training, and scale the others (Srivastava et al. 2014)."""
        is_ours = input.device.type == CPU or _active.get() is not None
        if not is_ours or not self.training or not 0 < self.p < 1:
            return nn.functional.dropout(input, self.p, self.training)
        dropped: Tensor = _Dropout.apply(input, masks_of(self, input.shape))  # type: ignore[no-untyped-call]
        return dropped


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, masks: RowMasks) -> Tensor:
        keep, ctx.factor = masks.keep(input.shape[-1]).view(input.shape), masks.factor
        ctx.save_for_backward(keep)
        dropped: Tensor = (input * ctx.factor).mul_(keep)
        return dropped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (keep,) = ctx.saved_tensors
        return (gradients[0] * ctx.factor).mul_(keep), None


def use_own_dropout(backbone: nn.Module) -> None:
    """Put :class:`Dropout` in the place of every ``nn.Dropout`` of ``backbone``, and number all its modules."""
    for parent in list(backbone.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p).train(child.training))
    for number, module in enumerate(backbone.modules()):
        setattr(module, SITE, number)
