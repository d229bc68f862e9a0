"""Products of linear layers by compiled kernels are those of the exact numbers but for the rounding of the results."""

import pytest
import torch
from native_kernels import kernels_of, needs_kernels
from torch import Tensor, nn

from biencoder.model.kernels.library import without_kernels
from biencoder.model.kernels.linear import _PlainLinear, _TiledLinear, linear

pytestmark = [needs_kernels, pytest.mark.usefixtures(kernels_of.__name__)]

# Rows that are no multiple of a tile's, one block of a weight's gradient and more; inputs and outputs that leave rests.
ROWS = (1, 31, 32, 45, 256, 300)
SIZES = ((32, 32), (96, 64), (64, 416), (800, 224))
HALF_A_STEP = 2.0**-8  # of bf16, relative to the number that is rounded


def layers(inputs: int, *outputs: int) -> list[nn.Linear]:
    torch.manual_seed(inputs)
    return [nn.Linear(inputs, each) for each in outputs]


def narrow(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def exact(modules: list[nn.Linear]) -> tuple[Tensor, Tensor]:
    weight, bias = (torch.cat([getattr(module, name) for module in modules]).detach() for name in ("weight", "bias"))
    return weight.bfloat16().double(), bias


def assert_near(got: Tensor, want: Tensor, terms: int, rounding: float) -> None:
    """Sums of float32 products differ by their order, and the result may be rounded to bf16."""
    bound = rounding * want.abs() + 1e-6 * terms**0.5 + 1e-6 * want.abs().max()
    assert bool(((got.double() - want).abs() <= bound).all())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_products_in_bf16_are_near_the_exact_ones(rows: int, inputs: int, outputs: int) -> None:
    modules = layers(inputs, outputs)
    made = linear(modules, torch.bfloat16, backward=True)
    weight, bias = exact(modules)
    x, gradient = narrow(rows, inputs), narrow(rows, outputs)
    own = isinstance(made, _TiledLinear)
    wide = HALF_A_STEP if own else 2 * HALF_A_STEP
    bias = bias if own else bias.bfloat16()  # as PyTorch takes it; it rounds the gradient of the weight too
    assert_near(made.output(x), x.double() @ weight.t() + bias.double(), inputs, wide)
    assert_near(made.input_gradient(gradient), gradient.double() @ weight, outputs, wide)
    to_weight = made.weight_gradient(gradient, x)
    assert to_weight.dtype == torch.float32
    assert_near(to_weight, gradient.double().t() @ x.double(), rows, 0.0 if own else wide)


def test_layers_with_one_input_are_one() -> None:
    modules = layers(64, 32, 96, 64)
    joined = linear(modules, torch.bfloat16, backward=True)
    x, gradient = narrow(70, 64), narrow(70, 192)
    apart = [linear([module], torch.bfloat16, backward=True) for module in modules]
    assert torch.equal(joined.output(x), torch.cat([one.output(x) for one in apart], 1))
    assert_near(joined.input_gradient(gradient), gradient.double() @ exact(modules)[0], 192, 2 * HALF_A_STEP)
    parts = zip(apart, gradient.split((32, 96, 64), 1), strict=True)
    whole = torch.cat([one.weight_gradient(part.contiguous(), x) for one, part in parts])
    torch.testing.assert_close(joined.weight_gradient(gradient, x), whole)


def test_the_number_of_threads_changes_no_bit() -> None:
    if not isinstance(linear(layers(32, 32), torch.bfloat16, backward=True), _TiledLinear):
        pytest.skip("PyTorch's products may change with it")
    modules = layers(96, 1216)
    x, gradient = narrow(530, 96), narrow(530, 1216)

    def all_of_them() -> list[Tensor]:
        made = linear(modules, torch.bfloat16, backward=True)
        return [made.output(x), made.input_gradient(gradient), made.weight_gradient(gradient, x)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = all_of_them()
        torch.set_num_threads(5)
        together = all_of_them()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_number_that_is_none_stays_where_it_is() -> None:
    made = linear(layers(64, 64), torch.bfloat16, backward=True)
    x = narrow(40, 64)
    x[7, 3] = torch.nan
    assert made.output(x).isnan().any(1).nonzero().tolist() == [[7]]
    gradient = narrow(40, 64)
    gradient[39, 5] = torch.nan
    assert made.weight_gradient(gradient, narrow(40, 64)).isnan().any(1).nonzero().tolist() == [[5]]


def test_in_float32_they_are_pytorchs() -> None:
    assert isinstance(linear(layers(32, 32), torch.float32, backward=True), _PlainLinear)


def test_without_kernels_they_are_pytorchs() -> None:
    with without_kernels():
        assert isinstance(linear(layers(32, 32), torch.bfloat16, backward=True), _PlainLinear)


def test_tiles_are_used_where_the_library_is_for_them(kernels_of: str) -> None:
    own = isinstance(linear(layers(32, 32), torch.bfloat16, backward=False), _TiledLinear)
    assert own == (kernels_of == "amx")
