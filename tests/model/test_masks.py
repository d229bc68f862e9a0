"""Masks of dropout: what chance says of them, on what they depend, and that kernels and PyTorch make the same."""

import math

import pytest
import torch
from native_kernels import kernels_of, needs_kernels
from torch import Tensor

from biencoder.data.random_bits import splitmix64
from biencoder.model.kernels.library import without_kernels
from biencoder.model.masks import DRAWS, RowMasks, TextKeys, WeightMasks, key_of

STEP = 2**64 - 12345  # a key with its highest bit set


def text_keys(texts: int, step: int = STEP) -> TextKeys:
    return TextKeys.of(step, torch.arange(texts))


def largest_correlation(keep: Tensor, p: float) -> float:
    """Between any two rows ``[R, C]``, in standard deviations of what chance gives."""
    centred = keep.double().flatten(1) - (1 - p)
    correlations = (centred @ centred.T / (p * (1 - p) * centred.shape[1])).fill_diagonal_(0)
    return float(correlations.abs().max()) * math.sqrt(centred.shape[1])


def test_keys_are_those_of_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [key % 2**64 for key in key_of(1234567, torch.arange(4)).tolist()] == published
    keys = torch.tensor([0, 1, -1, 2**62])
    assert torch.equal(key_of(keys, 0), torch.from_numpy(splitmix64(keys.numpy().view("uint64")).view("int64")))
    assert torch.equal(key_of(keys, torch.full((4,), 2**33)), key_of(keys, 2**33))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.03])
@pytest.mark.parametrize("by_kernels", [True, False])
def test_they_keep_the_right_share_independently(p: float, by_kernels: bool) -> None:
    if by_kernels:
        keep = RowMasks.of(text_keys(401).texts_N, 7, p).keep(999)
    else:
        with without_kernels():
            keep = RowMasks.of(text_keys(401).texts_N, 7, p).keep(999)
    masks = RowMasks.of(None, 7, p)
    share, deviation = keep.double().mean().item(), math.sqrt(p * (1 - p) / keep.numel())
    assert keep.shape == (401, 999)
    assert set(keep.unique().tolist()) == {0, 1}
    assert abs(share - (1 - p)) < 4 * deviation + 2**-16
    assert abs(masks.factor * (1 - p) - 1) < 2**-15
    centred = (keep.double() - share).flatten()
    for lag in (1, 2, 3, 4, 5, 16, 32, 999):  # neighbouring columns, the two halves of a word, neighbouring rows
        correlation = (centred[lag:] * centred[:-lag]).mean() / (p * (1 - p))
        assert abs(correlation) < 5 / math.sqrt(keep.numel())


def test_a_probability_is_a_multiple_of_2_to_the_minus_16_and_leaves_a_factor() -> None:
    assert RowMasks.of(None, 0, 0.1).dropped == 6554
    assert RowMasks.of(None, 0, 0.1).factor == DRAWS / (DRAWS - 6554)
    assert RowMasks.of(None, 0, 0.0).factor == 1
    almost = RowMasks.of(text_keys(64).texts_N, 0, 0.999999)
    assert almost.factor == DRAWS
    assert almost.keep(64).sum() <= 3


def test_texts_sites_and_steps_have_masks_of_their_own() -> None:
    p, size = 0.1, 60_000
    rows = [
        RowMasks.of(text_keys(1, step).texts_N[:1], site, p).keep(size) for step in (1, 2, STEP) for site in range(10)
    ]
    rows.append(RowMasks.of(text_keys(10).texts_N, 3, p).keep(size)[1:])
    assert largest_correlation(torch.cat(rows), p) < 5
    weights = [WeightMasks.of(text_keys(3, step), site, p).keep(4, 120) for step in (1, STEP) for site in range(3)]
    assert largest_correlation(torch.cat([x.flatten(0, 1).flatten(1) for x in weights]), p) < 5


def test_masks_of_attention_are_independent_in_every_direction() -> None:
    """Between neighbouring queries and keys, heads, texts, and attentions."""
    p, heads, texts, sites = 0.1, 8, 6, 4
    keep = torch.stack([WeightMasks.of(text_keys(texts), site, p).keep(heads, 128) for site in range(sites)]).double()
    deviation = math.sqrt(p * (1 - p) / keep.numel())
    assert abs(keep.mean().item() - (1 - p)) < 4 * deviation + 2**-16
    centred = keep - (1 - p)
    for axis in range(keep.ndim):
        for lag in (1, 2, 3, 16, 32):
            if lag >= keep.shape[axis]:
                continue
            pairs = centred.narrow(axis, lag, keep.shape[axis] - lag) * centred.narrow(axis, 0, keep.shape[axis] - lag)
            assert abs(pairs.mean().item()) / (p * (1 - p)) < 5 / math.sqrt(pairs.numel()), (axis, lag)
    per_place = keep.mean(dim=(0, 1, 2))  # no query or key is favoured
    assert per_place.std().item() < 1.1 * math.sqrt(p * (1 - p) / (sites * texts * heads))


def test_a_weights_mask_does_not_depend_on_the_length_of_the_matrix_or_on_other_texts() -> None:
    masks = WeightMasks.of(text_keys(5), 2, 0.4)
    whole = masks.keep(3, 100)
    assert torch.equal(masks.keep(3, 37), whole[:, :, :37, :37])
    assert torch.equal(masks.only(torch.tensor([4, 1])).keep(3, 37), whole[[4, 1], :, :37, :37])
    assert torch.equal(masks.only(slice(2, 3)).keep(1, 100), whole[2:3, :1])


def test_from_one_place_they_are_a_row_of_those_from_all_places() -> None:
    masks, places = WeightMasks.of(text_keys(5), 2, 0.4), torch.tensor([0, 15, 16, 31, 99])
    whole = masks.keep(3, 100)
    assert torch.equal(masks.keep_from(places, 3, 100), torch.stack([whole[n, :, [p]] for n, p in enumerate(places)]))


@needs_kernels
@pytest.mark.usefixtures(kernels_of.__name__)
@pytest.mark.parametrize("columns", [1, 31, 64, 777])
def test_kernels_and_pytorch_make_the_same_masks_of_rows(columns: int) -> None:
    masks = RowMasks.of(text_keys(300).texts_N, 2**16 + 5, 0.3)
    by_kernels = masks.keep(columns)
    with without_kernels():
        assert torch.equal(masks.keep(columns), by_kernels)


@needs_kernels
@pytest.mark.usefixtures(kernels_of.__name__)
@pytest.mark.parametrize("length", [1, 33, 96])
def test_kernels_and_pytorch_make_the_same_masks_of_weights(length: int) -> None:
    masks = WeightMasks.of(text_keys(3), 9, 0.3)
    by_kernels = masks.keep(5, length)
    with without_kernels():
        assert torch.equal(masks.keep(5, length), by_kernels)
