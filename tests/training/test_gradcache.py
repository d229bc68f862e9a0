"""A step in bounded memory is the plain step."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from native_kernels import NATIVE_SIZES
from tiny import gradients, random_texts, tiny_model
from torch import Tensor

from biencoder import Encoder
from biencoder.model.adapting.freezing import freeze
from biencoder.model.adapting.lora import add_lora
from biencoder.model.files.pretrained import checkpoint_activations
from biencoder.model.kernels.library import without_kernels
from biencoder.model.packing import chunks
from biencoder.model.representations.dense import Dense
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.objective.labels import BatchLabels
from biencoder.objective.objective import Objective
from biencoder.training import gradcache
from biencoder.training.batch import TrainingBatch

QUERIES, GROUP = 12, 3
OBJECTIVE = ContrastiveObjective(0.05, in_batch_negatives=True)


@pytest.fixture(params=[{}, NATIVE_SIZES], ids=["PyTorch", "kernels"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path, device: torch.device) -> Encoder:
    model = tiny_model(tmp_path, dropout=True, **request.param)
    encoder = Encoder.load(model, pooling="mean", normalize=True, device=device.type)
    encoder.train()
    return encoder


def make_batch(encoder: Encoder, chunk_tokens: int = 100) -> TrainingBatch:
    texts = random_texts(QUERIES * (1 + GROUP), seed=2)
    return TrainingBatch(
        chunks=list(chunks(encoder.tokenize(texts), chunk_tokens)),
        queries=QUERIES,
        query_sizes=[QUERIES],
        passage_sizes=[QUERIES * GROUP],
        total_queries=QUERIES,
        labels=BatchLabels(torch.arange(QUERIES * GROUP).view(QUERIES, GROUP), torch.arange(QUERIES)),
    )


def step(
    encoder: Encoder, batch: TrainingBatch, keep_tokens: int, seed: int = 0, objective: Objective = OBJECTIVE
) -> tuple[gradcache.StepLosses, dict[str, Tensor]]:
    encoder.backbone.zero_grad()
    losses = gradcache.accumulate_gradients(encoder, batch, objective, keep_tokens=keep_tokens, seed=(seed, 0))
    return losses, gradients(encoder.backbone)


def figures(losses: gradcache.StepLosses) -> list[float]:
    return [float(x) for x in (losses.total, losses.contrastive, losses.distillation)]


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    scale = max(float(gradient.abs().max()) for gradient in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / scale


@pytest.mark.parametrize("checkpointing", [False, True])
def test_replayed_chunks_have_the_dropout_masks_of_the_kept_ones(encoder: Encoder, checkpointing: bool) -> None:
    batch = make_batch(encoder)
    assert len(batch.chunks) > 4
    if checkpointing:
        checkpoint_activations(encoder.backbone)
    whole, part, none = (step(encoder, batch, keep) for keep in (10**9, batch.tokens // 2, 0))
    for losses, replayed in (part, none):
        assert figures(losses) == figures(whole[0])
        assert largest_difference(whole[1], replayed) < 1e-6
    other_masks = step(encoder, batch, 10**9, seed=1)
    assert figures(other_masks[0]) != figures(whole[0])
    assert largest_difference(whole[1], other_masks[1]) > 1e-2


@pytest.mark.parametrize("kind", ["bert", "qwen3", "deberta-v2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_replayed_chunks_are_the_kept_ones_with_lora_and_frozen_layers(
    kind: str, checkpointing: bool, tmp_path: Path
) -> None:
    encoder = Encoder.load(tiny_model(tmp_path, kind, dropout=True), pooling="mean", normalize=True)
    encoder.train()
    freeze(encoder.backbone, embeddings=False, layers=1)
    add_lora(encoder.backbone, rank=2, alpha=4.0, dropout=0.2, first_layer=1, base="base", seed=0)
    for name, parameter in encoder.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = make_batch(encoder)
    whole = step(encoder, batch, 10**9)
    if checkpointing:
        checkpoint_activations(encoder.backbone)
    part, none = (step(encoder, batch, keep) for keep in (batch.tokens // 2, 0))
    assert all("lora_" in name for name in whole[1])
    for losses, replayed in (part, none):
        assert float(losses.total) == pytest.approx(float(whole[0].total), rel=1e-6)
        assert largest_difference(whole[1], replayed) < 1e-6


def test_a_step_depends_on_its_seed_and_on_nothing_random_before(encoder: Encoder) -> None:
    batch = make_batch(encoder)
    losses, first = step(encoder, batch, 200)
    torch.manual_seed(1234)
    torch.rand(17)
    again, second = step(encoder, batch, 200)
    assert figures(losses) == figures(again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_texts_share_no_masks(encoder: Encoder) -> None:
    """The same text as a query and as several passages gets different vectors, in chunks of its own or in one."""
    sequence = encoder.tokenize(random_texts(1, longest=20))[0]
    labels = BatchLabels(torch.tensor([[0, 1, 2]]), torch.tensor([0]))
    for chunk_tokens in (len(sequence), 10**9):
        batch = TrainingBatch(list(chunks([sequence] * 4, chunk_tokens)), 1, [1], [3], 1, labels)
        encoded = gradcache.encode_chunks(encoder, batch, 0, (0, 0))
        vectors = torch.cat([part.texts.vectors for part in encoded])
        assert len(vectors.unique(dim=0)) == 4


@pytest.mark.parametrize("more", [{}, {"two_way": True, "dims": (16, 8)}], ids=["usual", "both ways, nested"])
def test_the_objective_in_blocks_of_queries_is_the_whole_one(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    batch, objective = make_batch(encoder), replace(OBJECTIVE, **more)
    whole, gradient = step(encoder, batch, 10**9, objective=objective)
    monkeypatch.setattr(gradcache, "LEAST_QUERIES", 1)
    for scores_at_once in (1, QUERIES * GROUP * 5):
        monkeypatch.setattr(gradcache, "SCORES_AT_ONCE", scores_at_once)
        blocks, other = step(encoder, batch, 10**9, objective=objective)
        assert float(blocks.total) == pytest.approx(float(whole.total), rel=1e-6)
        assert largest_difference(gradient, other) < 1e-5


def test_gradients_add_up_to_what_is_there(encoder: Encoder) -> None:
    batch = make_batch(encoder)
    _, once = step(encoder, batch, 0)
    gradcache.accumulate_gradients(encoder, batch, OBJECTIVE, keep_tokens=0, seed=(0, 0))
    twice = gradients(encoder.backbone)
    assert largest_difference({name: 2 * gradient for name, gradient in once.items()}, twice) < 1e-6


def test_the_cut_into_chunks_and_the_kernels_do_not_matter(encoder: Encoder) -> None:
    """With dropout: its masks follow from the texts."""
    whole, gradient = step(encoder, make_batch(encoder, 10**9), 10**9)
    for chunk_tokens, keep_tokens, off in (
        (10**9, 0, nullcontext()),
        (30, 200, nullcontext()),
        (100, 0, without_kernels()),
    ):
        with off:
            parts, other = step(encoder, make_batch(encoder, chunk_tokens), keep_tokens)
        assert float(parts.total) == pytest.approx(float(whole.total), rel=1e-6)
        assert largest_difference(gradient, other) < 1e-5


def test_activations_of_no_more_than_keep_tokens_are_alive(encoder: Encoder) -> None:
    batch = make_batch(encoder)
    for keep in (0, 250, 10**9):
        encoded = gradcache.encode_chunks(encoder, batch, keep, (0, 0))
        kept = sum(part.chunk.tokens for part in encoded if part.texts.requires_grad)
        assert kept <= keep
        assert kept > keep - 200 or kept == batch.tokens


def test_embedding_tables_get_the_rows_of_a_chunk_and_the_plain_gradient(tmp_path: Path) -> None:
    """PyTorch's own way makes a table of gradients a chunk; ours must agree with it, padding token included."""
    encoder = Encoder.load(tiny_model(tmp_path), pooling="mean", normalize=True)
    encoder.backbone.double().train()  # the two add up in another order
    plain = copy.deepcopy(encoder)
    batch = make_batch(encoder)
    for part in batch.chunks:
        part.batch.input_ids[part.batch.lengths[0] - 1] = 0  # its row gets no gradient
    vectors = torch.cat([plain.embed(part.batch) for part in batch.chunks])
    vectors = vectors[torch.cat([part.index for part in batch.chunks]).argsort()]
    losses = OBJECTIVE(Dense(vectors[:QUERIES]), Dense(vectors[QUERIES:]), batch.labels.rows(slice(None)))
    losses.total.mean().backward()
    want = gradients(plain.backbone)
    table = "embeddings.word_embeddings.weight"
    _, got = step(encoder, batch, 0)
    assert got.keys() == want.keys()
    assert (got[table] - want[table]).abs().max() < 1e-6 * want[table].abs().max()
    assert not got[table][0].any()
    assert got[table].layout == torch.strided
