import math

import pytest
import torch
from torch import Tensor

from biencoder.model.merging.average import slerp, weighted_mean


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unit(tensor: Tensor) -> Tensor:
    return torch.nn.functional.normalize(tensor, dim=-1)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.25, 0.75), (0.2, 0.3, 0.5)])
def test_the_mean_is_the_sum_of_the_weighted_tensors(weights: tuple[float, ...]) -> None:
    tensors = [random(40, 30, seed=seed) for seed in range(len(weights))]
    expected = sum((weight * tensor.double() for weight, tensor in zip(weights, tensors, strict=True)), torch.zeros(()))
    torch.testing.assert_close(weighted_mean(tensors, weights).double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_of_one_gives_its_tensor_bit_for_bit(dtype: torch.dtype) -> None:
    one, other = random(50).to(dtype), random(50, seed=1).to(dtype)
    one[0], other[1] = -0.0, math.inf  # -0 + 0 is 0, and 0 x infinity is no number
    for weights, expected in (((1.0, 0.0), one), ((0.0, 1.0), other)):
        assert torch.equal(weighted_mean([one, other], weights).view(torch.uint8), expected.view(torch.uint8))
        assert torch.equal(slerp(one, other, weights[1]).view(torch.uint8), expected.view(torch.uint8))


def test_the_first_tensor_says_the_dtype_and_sums_are_more_exact_than_it() -> None:
    tensors = [torch.full((4,), value).half() for value in (2048.0, 1.0, 1.0)]
    mean = weighted_mean(tensors, (1 / 3,) * 3)  # in half precision 2048 + 1 is 2048
    assert mean.dtype == torch.float16
    assert mean[0] == torch.tensor(2050 / 3).half()
    assert weighted_mean([random(3), random(3).bfloat16()], (0.5, 0.5)).dtype == torch.float32


def test_integers_are_the_first_models() -> None:
    one, other = torch.arange(5), torch.arange(5) + 7
    assert torch.equal(weighted_mean([one, other], (0.1, 0.9)), one)
    assert torch.equal(slerp(one, other, 0.9), one)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_arc_between_unit_vectors_keeps_their_length_and_divides_their_angle(share: float) -> None:
    one, other = unit(random(300)), unit(random(300, seed=1))
    between = slerp(one, other, share)
    angle = math.acos(float(one @ other))
    assert float(between.norm()) == pytest.approx(1, abs=1e-6)
    assert math.acos(float(one @ between)) == pytest.approx(share * angle, abs=1e-5)
    assert math.acos(float(between @ other)) == pytest.approx((1 - share) * angle, abs=1e-5)
    assert float(weighted_mean([one, other], (1 - share, share)).norm()) < 0.99


def test_the_arc_is_that_of_the_formula_for_any_shape_and_length() -> None:
    one, other = random(6, 7) * 3, random(6, 7, seed=1)
    a, b = one.double().flatten(), other.double().flatten()
    angle = torch.acos(a @ b / a.norm() / b.norm())
    expected = (torch.sin(0.7 * angle) * a + torch.sin(0.3 * angle) * b) / torch.sin(angle)
    torch.testing.assert_close(slerp(one, other, 0.3).double(), expected.reshape(6, 7), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 2.5, -1.0, 0.0])
def test_what_has_no_arc_is_interpolated_on_the_line(factor: float) -> None:
    one = random(100)
    other = one * factor
    torch.testing.assert_close(slerp(one, other, 0.25), 0.75 * one + 0.25 * other, rtol=1e-6, atol=1e-6)


def test_a_tuned_tensor_is_so_near_its_base_that_arc_and_line_meet() -> None:
    base = random(1000)
    tuned = base + 1e-4 * random(1000, seed=1)
    torch.testing.assert_close(slerp(base, tuned, 0.5), (base + tuned) / 2, rtol=1e-6, atol=1e-7)
