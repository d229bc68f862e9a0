"""A layer by compiled kernels computes what its authors wrote, forward and backward, in both precisions."""

import contextlib
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layers import bf16_errors_of_layers, count_calls
from native_kernels import NATIVE_SIZES, kernels_of, needs_kernels
from tiny import bytes_kept, gradient_errors, relative_error, tiny_model, vectors_and_gradients
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from biencoder import Encoder
from biencoder.model.adapting.lora import add_lora
from biencoder.model.architectures import native_layer
from biencoder.model.architectures.bert import BERT_LIKE, bert_layers
from biencoder.model.architectures.native_layer import prepared_bytes, prepared_weights
from biencoder.model.files.pretrained import checkpoint_activations
from biencoder.model.kernels.library import kernels, without_kernels
from biencoder.model.masks import RowMasks, TextKeys
from biencoder.model.packing import pack
from biencoder.training.optimizer import adamw

pytestmark = [needs_kernels, pytest.mark.usefixtures(kernels_of.__name__)]

LENGTHS = (60, 17, 17, 3, 1)
BATCH = pack([[5 + (7 * place + length) % 150 for place in range(length)] for length in LENGTHS])
T, D = 150, 64


def load(folder: Path, kind: str = "bert", *, pooling: str = "mean", **changes: Any) -> Encoder:
    encoder = Encoder.load(tiny_model(folder, kind, **NATIVE_SIZES | changes), pooling=pooling, normalize=True)
    encoder.train()
    return encoder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the layers that kernels run."""
    return count_calls(monkeypatch, native_layer._Layer)


@pytest.mark.parametrize("kind", sorted(BERT_LIKE))
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_and_gradients_are_those_of_pytorchs_operations(
    kind: str, pooling: str, tmp_path: Path, calls: list[int]
) -> None:
    encoder = load(tmp_path, kind, pooling=pooling)
    vectors, got = vectors_and_gradients(encoder, BATCH)
    assert len(calls) == (2 if pooling == "mean" else 1)  # under cls pooling the last layer is for the first tokens
    with without_kernels():
        expected, want = vectors_and_gradients(encoder, BATCH)
    assert len(calls) == (2 if pooling == "mean" else 1)
    assert relative_error(vectors, expected) < 1e-6
    for name in [name for name in want if name.endswith("key.bias")]:  # zero but for rounding
        del got[name], want[name]
    assert max(gradient_errors(got, want)) < 1e-5


def test_bf16_is_as_near_to_the_exact_gradient_as_transformers_under_autocast(tmp_path: Path) -> None:
    """Over several models: of one alone, either may be nearer by a tenth."""
    errors = torch.tensor([bf16_errors_of_layers(tmp_path / str(seed), seed, **NATIVE_SIZES) for seed in range(6)])
    got, want = errors.mean(0).tolist()
    print(f"mean error of the bf16 gradient: own {got:.5f}, transformers' {want:.5f}")
    assert want > 1e-3
    assert got < 1.05 * want


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_a_residual_norm_and_its_gradient_are_those_of_the_formula(dtype: torch.dtype, p: float) -> None:
    tolerance = 1e-6 if dtype == torch.float32 else 8e-3
    torch.manual_seed(0)
    given, residual, gain, bias = torch.randn(T, D).to(dtype), torch.randn(T, D), torch.randn(D), torch.randn(D)
    masks = RowMasks.of(TextKeys.of(1, torch.arange(T)).texts_N, 3, p)
    with without_kernels():
        keep = masks.keep(D)
    exact = [x.double().requires_grad_() for x in (given, residual, gain, bias)]
    want = layer_norm(exact[0] * keep * masks.factor + exact[1], (D,), exact[2], exact[3], 1e-12)
    gradient, more = torch.randn(T, D), torch.randn(T, D).to(dtype)
    want.backward(gradient.double() + more.double())
    got = native_layer._residual_norm(given, residual, gain, bias, 1e-12, masks, keep=True)
    assert relative_error(got.out, want) < 1e-6
    assert torch.equal(got.narrow, got.out.to(dtype))
    assert got.normal is not None
    assert got.deviation is not None
    made = native_layer._norm_gradient(gradient, more, got.normal, got.deviation, gain, masks)
    to_given, to_residual, to_gain, to_bias = (x.grad for x in exact if x.grad is not None)
    pairs = [
        (made.to_input, to_given),
        (made.to_residual, to_residual),
        (made.to_gain, to_gain),
        (made.to_bias, to_bias),
        (made.to_input_bias, to_given.sum(0)),
    ]
    assert max(relative_error(mine, theirs) for mine, theirs in pairs) < tolerance
    if p:
        assert abs(keep.double().mean().item() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / keep.numel())


def test_gelu_and_its_gradient_are_exact_on_both_tails() -> None:
    given = torch.linspace(-14, 14, 96 * 64).view(96, 64)
    exact = given.double().requires_grad_()
    want = gelu(exact)
    gradient = torch.randn(96, 64)
    want.backward(gradient.double())
    assert (native_layer._gelu(given, reuse=False) - want).abs().max() < 1e-6
    into = gradient.clone()
    again, to_bias = native_layer._gelu_gradient(given, into)
    assert exact.grad is not None
    assert (again - want).abs().max() < 1e-6
    assert (into - exact.grad).abs().max() < 2e-6
    assert (to_bias - exact.grad.sum(0)).abs().max() < 1e-4
    copy_of_given = given.clone()
    assert native_layer._gelu(copy_of_given, reuse=True) is copy_of_given


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(precision: str, tmp_path: Path) -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        encoder = load(tmp_path / f"{precision}-{seed}-{len(list(tmp_path.iterdir()))}", dropout=True)
        encoder.precision = precision
        optimizer = adamw(encoder.backbone, 1e-3, 0.0)
        for step in range(3):
            torch.manual_seed(seed + step)
            vectors_and_gradients(encoder, BATCH)
            optimizer.step()
        return {name: p.detach() for name, p in encoder.backbone.named_parameters()}

    one, again, other = trained(0), trained(0), trained(9)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_weights_are_laid_out_once_where_they_are_at_rest_and_anew_where_not(tmp_path: Path) -> None:
    encoder = load(tmp_path)
    with prepared_weights():
        before = encoder.embed(BATCH)
        laid_out = prepared_bytes()
        assert laid_out > 0
        assert torch.equal(encoder.embed(BATCH), before)
        assert prepared_bytes() == laid_out
    with torch.no_grad():
        for layer in bert_layers(encoder.backbone):
            layer.output.dense.weight.data.mul_(1.5)  # which no version counter sees
    assert relative_error(encoder.embed(BATCH), before) > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_prepared_weights_take_is_known(precision: str, tmp_path: Path) -> None:
    encoder = load(tmp_path)
    encoder.precision = precision
    linear = [m for layer in bert_layers(encoder.backbone) for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(module.weight.numel() for module in linear)
    library = kernels()
    assert library is not None
    layouts = 2 if precision == "bf16" and library.has_linear() else 1  # kernels multiply by one in each direction
    with prepared_weights():
        assert prepared_bytes() == 0
        encoder.embed(BATCH)
        assert prepared_bytes() == weights * layouts * (2 if precision == "bf16" else 4)
    assert prepared_bytes() == 0


def test_an_encoder_that_is_kept_ready_lays_nothing_out_again(tmp_path: Path) -> None:
    encoder = load(tmp_path)
    texts = ["word1 word2", "word3"]
    alone = encoder.encode(texts)
    with encoder.kept_ready():
        encoder.embed(pack([[5, 6, 7]]))
        laid_out = prepared_bytes()
        assert laid_out > 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("biencoder.model.architectures.native_layer.linear", None)  # what lays a layer out
            np.testing.assert_array_equal(encoder.encode(texts), alone)
        assert prepared_bytes() == laid_out
    assert prepared_bytes() == 0


def test_vectors_made_in_inference_mode_do_not_stand_in_the_way_of_training(tmp_path: Path) -> None:
    encoder = load(tmp_path)
    with prepared_weights():
        encoder.encode(["word1 word2", "word3"])
        vectors_and_gradients(encoder, BATCH)


@pytest.mark.parametrize("frozen", ["weight of one part", "a layer"])
def test_frozen_weights_get_no_gradient_and_the_others_theirs(frozen: str, tmp_path: Path) -> None:
    encoder = load(tmp_path)
    want = vectors_and_gradients(encoder, BATCH)[1]
    first = bert_layers(encoder.backbone)[0]
    for parameter in [first.intermediate.dense.weight] if frozen != "a layer" else first.parameters():
        parameter.requires_grad_(False)
    got = vectors_and_gradients(encoder, BATCH)[1]
    assert 0 < len(want) - len(got) == (1 if frozen != "a layer" else len(list(first.parameters())))
    assert all(torch.equal(got[name], want[name]) for name in got)


def test_recomputed_layers_draw_the_same_masks(tmp_path: Path) -> None:
    encoder = load(tmp_path, dropout=True)
    again = copy.deepcopy(encoder)
    checkpoint_activations(again.backbone)
    results = []
    for one in (encoder, again):
        torch.manual_seed(4)
        results.append(vectors_and_gradients(one, BATCH))
    assert torch.equal(results[0][0], results[1][0])
    assert max(gradient_errors(results[1][1], results[0][1])) < 1e-6


def test_a_copy_has_its_own_weights(tmp_path: Path) -> None:
    encoder = load(tmp_path)
    before = encoder.embed(BATCH)
    with torch.no_grad():
        for parameter in copy.deepcopy(encoder).backbone.parameters():
            parameter.zero_()
    assert torch.equal(encoder.embed(BATCH), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda encoder: add_lora(encoder.backbone, rank=2, alpha=4.0, dropout=0.0, first_layer=0, base="base", seed=0),
        lambda encoder: encoder.backbone.double(),
    ],
    ids=["adapters", "float64"],
)
def test_what_kernels_do_not_run_is_left_to_pytorch(
    change: Callable[[Encoder], None], tmp_path: Path, calls: list[int]
) -> None:
    encoder = load(tmp_path)
    change(encoder)
    vectors_and_gradients(encoder, BATCH)
    assert not calls


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"num_attention_heads": 4}, {"intermediate_size": 40}])
def test_other_activations_and_sizes_are_left_to_pytorch(
    changes: dict[str, Any], tmp_path: Path, calls: list[int]
) -> None:
    vectors_and_gradients(load(tmp_path, **changes), BATCH)
    assert not calls


def test_little_is_kept_for_the_backward_pass(tmp_path: Path) -> None:
    """In bf16: nine times the hidden size a token and layer, the intermediate layer once; no mask, no score."""
    encoder = load(tmp_path, dropout=True)
    encoder.precision = "bf16"
    batch = pack([[7] * 64] * 8)
    kept = []
    for off in (contextlib.nullcontext, without_kernels):
        with off():
            kept.append(bytes_kept(lambda: encoder.embed(batch)))
    tokens, hidden, intermediate, heads, layers = 512, 64, 96, 2, 2
    layer = tokens * (2 * (9 * hidden + intermediate) + 4 * (2 * heads + 2))
    embeddings = kept[0] - layers * layer
    assert embeddings < tokens * hidden * 4 * 4 + 50_000  # the tables' indices, a normalisation, a mask, pooling
    assert kept[0] < 0.75 * kept[1]
