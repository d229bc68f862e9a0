"""Which row of which text a mask follows, and its gradient against the formula."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn

from biencoder.model.dropout import SITE, Dropout, RowKeys, carried, dropping, dropping_rows, masks_of
from biencoder.model.files.pretrained import load_backbone
from biencoder.model.masks import RowMasks, TextKeys, key_of

STEP = 11


def matrix_keys(texts: int, length: int) -> RowKeys:
    keys = TextKeys.of(STEP, torch.arange(texts))
    return RowKeys(STEP, lambda: key_of(keys.texts_N[:, None], torch.arange(length)))


def row_keys(*lengths: int) -> RowKeys:
    keys = TextKeys.of(STEP, torch.arange(len(lengths)))
    parts = [key_of(keys.texts_N[n : n + 1], torch.arange(length)) for n, length in enumerate(lengths)]
    return RowKeys(STEP, lambda: torch.cat(parts)[None])


def dropped(keys: RowKeys | None, *shape: int, module: nn.Module | None = None) -> Tensor:
    with dropping(keys):
        out: Tensor = (module or Dropout(0.4))(torch.ones(shape))
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_and_gradient_are_the_input_times_mask_and_factor(dtype: torch.dtype) -> None:
    values = torch.randn(7, 9, dtype=dtype, requires_grad=True)
    with dropping(row_keys(3, 4)):
        out = Dropout(0.3)(values)
    masks = RowMasks.of(row_keys(3, 4).tokens.flatten(), 0, 0.3)
    keep = masks.keep(9)
    assert torch.equal(out, values * masks.factor * keep)
    out.backward(torch.ones_like(out))
    assert values.grad is not None
    assert torch.equal(values.grad, torch.full_like(values, masks.factor) * keep)


def test_a_token_has_its_mask_in_a_row_in_a_matrix_and_alone() -> None:
    packed = dropped(row_keys(5, 3, 4), 1, 12, 9)[0]
    padded = dropped(matrix_keys(3, 6), 3, 6, 9)
    assert torch.equal(packed, torch.cat([padded[0, :5], padded[1, :3], padded[2, :4]]))
    assert torch.equal(packed, dropped(row_keys(5, 3, 4), 12, 9))
    with dropping(row_keys(5, 3, 4)), dropping_rows(torch.tensor([0, 5, 8])):
        first = Dropout(0.4)(torch.ones(3, 9))
    assert torch.equal(first, packed[[0, 5, 8]])


def test_heads_have_masks_of_their_own_that_no_padding_changes() -> None:
    weights = dropped(matrix_keys(3, 6), 3, 4, 6, 6)
    assert torch.equal(weights, dropped(matrix_keys(3, 6), 12, 6, 6).view(3, 4, 6, 6))
    assert torch.equal(weights[1, :, :5, :5], dropped(matrix_keys(2, 5), 2, 4, 5, 5)[1])
    assert len(weights.flatten(0, 1).unique(dim=0)) == 12


def test_what_belongs_to_no_token_has_the_same_mask_in_every_chunk() -> None:
    table = dropped(matrix_keys(3, 6), 1, 16, 32)
    assert torch.equal(table, dropped(matrix_keys(2, 9), 1, 16, 32))
    assert len(table[0].unique(dim=0)) == 16
    assert dropped(matrix_keys(3, 6), 8).shape == (8,)


def test_a_module_that_is_used_again_drops_out_other_numbers() -> None:
    """As in ALBERT, where all layers are one; a backward pass that comes to a use again makes the mask of that use."""
    module, ones = Dropout(0.4), torch.ones(5, 9)
    with dropping(row_keys(5)):
        first = module(ones)
        again = carried(module)
        second, third = again(ones), module(ones)
    assert len(torch.stack([first, second, third]).unique(dim=0)) == 3
    for _ in range(2):
        assert torch.equal(again(ones), second)
    assert torch.equal(dropped(row_keys(5), 5, 9, module=module), first)


def test_modules_differ_by_their_numbers() -> None:
    one, other = Dropout(0.4), Dropout(0.4)
    setattr(other, SITE, 1)
    assert not torch.equal(dropped(row_keys(5), 5, 9, module=one), dropped(row_keys(5), 5, 9, module=other))


def test_outside_of_a_forward_pass_pytorchs_generator_draws() -> None:
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(dropped(None, 50, 50))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert carried(len) is len


def test_outside_of_training_and_at_the_ends_it_is_pytorchs() -> None:
    values = torch.randn(5, 5)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    assert torch.equal(Dropout(1.0)(values), torch.zeros(5, 5))
    assert not masks_of(Dropout(0.5).eval(), (5, 5)).dropped


def test_a_loaded_backbone_has_no_other_and_each_of_its_modules_a_number(tmp_path: Path) -> None:
    backbone = load_backbone(tiny_model(tmp_path, dropout=True), dropout=0.25)
    found = [module for module in backbone.modules() if isinstance(module, nn.Dropout)]
    assert found
    assert all(type(module) is Dropout and module.p == 0.25 and not module.training for module in found)
    assert len({getattr(module, SITE) for module in backbone.modules()}) == len(list(backbone.modules()))
