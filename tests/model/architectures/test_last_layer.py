"""The last layer for the pooled tokens alone gives the vectors and gradients of the whole one."""

from pathlib import Path

import pytest
import torch
from attending import attend, attend_from
from tiny import CONFIGS, gradient_errors, relative_error, tiny_model, vectors_and_gradients
from torch import Tensor, nn
from transformers import AutoModel

from biencoder import Encoder
from biencoder.model.architectures.bert import BERT_LIKE, skips_unused_tokens
from biencoder.model.masks import TextKeys
from biencoder.model.packing import Packing, pack

LENGTHS = (30, 12, 12, 12, 7, 2, 1)
BATCH = pack([[5 + (7 * place + length) % 150 for place in range(length)] for length in LENGTHS])
ROWS, LAST_ROWS = 96, 32  # for 76 tokens and 7 texts, see `rows_of_products`
TOLERANCE = 1e-5
IN_DOUBLE = 1e-10


def without_key_biases(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: gradient for name, gradient in gradients.items() if not name.endswith("key.bias")}


def rows_through(module: nn.Module) -> list[int]:
    rows: list[int] = []
    module.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].numel() // inputs[0].shape[-1]))
    return rows


@pytest.mark.parametrize("kind", sorted(BERT_LIKE))
@pytest.mark.parametrize("pooling", ["cls", "last"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, TOLERANCE), (torch.float64, IN_DOUBLE)], ids=str)
def test_vectors_and_gradients_are_those_of_the_whole_layer(
    kind: str, pooling: str, dtype: torch.dtype, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.load(tiny_model(tmp_path, kind), pooling=pooling, normalize=True)
    encoder.backbone.to(dtype)
    first, last = (rows_through(encoder.backbone.encoder.layer[i].intermediate.dense) for i in (0, -1))
    got = vectors_and_gradients(encoder, BATCH)
    assert first == [ROWS]
    assert last == [LAST_ROWS]
    monkeypatch.setattr("biencoder.model.embedding.skips_unused_tokens", lambda *_: False)
    want = vectors_and_gradients(encoder, BATCH)
    assert last == [LAST_ROWS, ROWS]
    assert relative_error(got[0], want[0]) <= tolerance
    if dtype == torch.float32:  # a key's bias: zero but for rounding, which the threads and the processor decide
        got, want = ((vectors, without_key_biases(by_name)) for vectors, by_name in (got, want))
    assert max(gradient_errors(got[1], want[1])) <= tolerance


def test_every_token_is_computed_where_every_token_is_used(tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path), pooling="mean")
    last = rows_through(encoder.backbone.encoder.layer[-1].intermediate.dense)
    encoder.embed(BATCH)
    assert last == [ROWS]


@pytest.mark.parametrize("kind", sorted(set(CONFIGS) - BERT_LIKE))
def test_layers_of_other_make_are_left_alone(kind: str, tmp_path: Path) -> None:
    assert not skips_unused_tokens(AutoModel.from_pretrained(tiny_model(tmp_path, kind)))


def test_a_causal_bert_keeps_its_causal_mask(tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path, is_decoder=True), pooling="last")
    assert not skips_unused_tokens(encoder.backbone)
    later = pack([[9, 8, 7, 6], [5, 5, 5]])
    first = encoder.backbone(input_ids=later.input_ids[:4].unsqueeze(0)).last_hidden_state[0, -1]
    assert relative_error(encoder.embed(later)[0], nn.functional.normalize(first, dim=0)) <= TOLERANCE


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_the_same_numbers_are_dropped_in_it(pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(tiny_model(tmp_path, dropout=True), pooling=pooling, normalize=False)
    encoder.train()
    one, other = (BATCH.keyed(TextKeys.of(step, torch.arange(len(LENGTHS)))) for step in (1, 2))
    got = vectors_and_gradients(encoder, one)
    assert relative_error(encoder.embed(other), got[0]) > 1e-2
    monkeypatch.setattr("biencoder.model.embedding.skips_unused_tokens", lambda *_: False)
    want = vectors_and_gradients(encoder, one)
    assert relative_error(got[0], want[0]) <= TOLERANCE
    assert max(gradient_errors(without_key_biases(got[1]), without_key_biases(want[1]))) <= TOLERANCE


def test_attention_from_one_token_is_a_row_of_attention_from_all() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(sum(LENGTHS), 4, 8, generator=generator) for _ in range(3))
    packing = Packing(LENGTHS, torch.device("cpu"))
    used = packing.starts[1:] - 1
    got = attend_from(query[used], key, value, packing, scale=0.3, dropout=0.0)
    assert relative_error(got, attend(query, key, value, packing, scale=0.3)[used]) <= TOLERANCE
