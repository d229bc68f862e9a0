"""Attention by compiled kernels against the formula: every library, head size, mask, precision, dropout; its memory."""

import ctypes
import math

import pytest
import torch
from attending import attend
from native_kernels import kernels_of, needs_kernels
from tiny import bf16_errors_of_attention, bytes_kept, relative_error
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from biencoder.model.attention import native
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.kernels.library import address
from biencoder.model.masks import TextKeys, WeightMasks
from biencoder.model.packing import Packing

pytestmark = [needs_kernels, pytest.mark.usefixtures(kernels_of.__name__)]

LENGTHS = (70, 70, 37, 33, 32, 5, 1)
H = 3
PACKING = Packing(LENGTHS, torch.device("cpu"))
KEYS, SITE = TextKeys.of(3, torch.arange(len(LENGTHS))), 2
PLAIN = AttentionSettings(1.0)
BEYOND = 9  # rows after the last text
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def inputs(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(sum(LENGTHS) + BEYOND, H, size, generator=generator).to(dtype) for _ in range(3))
    query, key, value = (x.requires_grad_() for x in drawn)
    return query, key, value


def formula(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, window: int | None, p: float
) -> Tensor:
    """Text by text in float64 with plain autograd, over the masks as PyTorch makes them."""
    masks = WeightMasks.of(KEYS, SITE, p)
    keep, attended, start = masks.keep(H, max(LENGTHS)), [], 0
    for text, length in enumerate(LENGTHS):
        q, k, v = (x[start : start + length].transpose(0, 1) for x in (query, key, value))
        place = torch.arange(length)
        distance = place[:, None] - place
        hidden = torch.zeros(length, length, dtype=torch.bool)
        if causal:
            hidden |= distance < 0
        if window is not None:
            hidden |= distance.abs() >= window
        weights = (q @ k.transpose(-1, -2) * scale).masked_fill(hidden, -math.inf).softmax(-1)
        weights = weights * keep[text, :, :length, :length] * masks.factor
        attended.append((weights @ v).transpose(0, 1))
        start += length
    return torch.cat([*attended, torch.zeros(BEYOND, *attended[0].shape[1:])])


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (False, 6), (True, 9)])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_output_and_gradients_are_those_of_the_formula(
    size: int, dtype: torch.dtype, causal: bool, window: int | None, p: float
) -> None:
    query, key, value = got = inputs(size, dtype)
    exact = [x.detach().double().requires_grad_() for x in got]
    exact_query, exact_key, exact_value = exact
    masked = PACKING.keyed(KEYS)
    one = attend(query, key, value, masked, scale=0.3, causal=causal, window=window, dropout=p, site=SITE)
    other = formula(exact_query, exact_key, exact_value, 0.3, causal, window, p)
    weights = torch.randn(one.shape).to(dtype)
    (one * weights).sum().backward()
    (other * weights.double()).sum().backward()
    assert one.dtype == dtype
    assert one.is_contiguous()
    assert not one[sum(LENGTHS) :].any()
    assert relative_error(one, other) < TOLERANCES[dtype]
    for mine, theirs in zip(got, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert relative_error(mine.grad, theirs.grad) < TOLERANCES[dtype]


def test_the_number_of_threads_and_a_second_time_change_no_bit() -> None:
    def run(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        query, key, value = rows = inputs(32, torch.bfloat16)
        attended = attend(query, key, value, PACKING, dropout=0.1)
        attended.backward(torch.ones_like(attended))
        torch.set_num_threads(before)
        return [attended, *(x.grad for x in rows if x.grad is not None)]

    for once, again in zip(run(1), run(2), strict=True):
        assert torch.equal(once, again)


def test_of_the_weights_nothing_is_kept_but_two_numbers_a_query() -> None:
    packing = Packing((64,) * 10, torch.device("cpu"))
    query, key, value = (torch.randn(640, H, 32, requires_grad=True) for _ in range(3))
    kept = bytes_kept(lambda: attend(query, key, value, packing, dropout=0.1))
    assert kept == 4 * query.nbytes + 2 * 4 * 640 * H


def test_heads_may_lie_anywhere_in_a_row() -> None:
    rows = torch.randn(sum(LENGTHS), 5, 3 * 32)  # as a fused projection and a slice of its heads leave them
    query, key, value = rows[:, 1:4].split(32, dim=-1)
    assert not key.is_contiguous()
    want = attend(query.contiguous(), key.contiguous(), value.contiguous(), PACKING)
    assert torch.equal(attend(query, key, value, PACKING), want)


def test_bf16_gradients_are_as_exact_as_those_of_flash_attention() -> None:
    packing = Packing((96,) * 4, torch.device("cpu"))
    errors = bf16_errors_of_attention(lambda q, k, v: attend(q, k, v, packing), 4, 96, 12, 32)
    print(f"relative error of bf16 gradients: own {errors[0]:.5f}, flash attention's {errors[1]:.5f}")
    assert errors[0] < 1.02 * errors[1]


@pytest.mark.parametrize("length", [300, 1030])
def test_long_texts_and_sharp_softmaxes_stay_exact(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(length, 1, 32, generator=generator) * 6 for _ in range(3))
    q, k, v = (x.double().transpose(0, 1) for x in (query, key, value))
    want = scaled_dot_product_attention(q, k, v, scale=1.0).transpose(0, 1)
    got = attend(query, key, value, Packing((length,), torch.device("cpu")), scale=1.0)
    assert relative_error(got, want) < 1e-5


def test_numbers_of_another_or_of_mixed_type_are_left_to_pytorch() -> None:
    query, key, value = (x.detach() for x in inputs(32, torch.float32))
    want = attend(query, key, value, PACKING)
    with torch.autocast("cpu", torch.float16):
        assert not native.runs(query, key, value, PLAIN)
        half = attend(query, key, value, PACKING)
    assert half.dtype == torch.float16
    assert relative_error(half, want) < 1e-2
    assert not native.runs(query, key, value.bfloat16(), PLAIN)  # rotary positions may widen the first two alone
    assert not native.runs(query.double(), key.double(), value.double(), PLAIN)
    assert native.runs(query, key, value, PLAIN)


def test_what_is_not_finite_is_not_hidden() -> None:
    query, key, value = (x.detach() for x in inputs(32, torch.float32))
    query[3] = math.nan
    attended = attend(query, key, value, PACKING)
    assert attended[3].isnan().all()
    assert attended[4:].isfinite().all()


def test_addresses_of_nothing_are_null() -> None:
    assert address(None).value is ctypes.c_void_p(None).value
