"""Is the GPU path right? Each check gives a figure and the limit that it must keep, see `benchmarks.gpu`."""

import contextlib
import hashlib
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModel

from benchmarks.shapes import SHAPES, Shape, random_text, write_model, write_pairs
from benchmarks.systems import write_tiny_collection
from biencoder import Encoder, TrainConfig, train
from biencoder.errors import Stopped
from biencoder.model.attention.providers import attend
from biencoder.model.attention.settings import AttentionSettings
from biencoder.model.packing import Packing, pack
from biencoder.retrieval.search import resident, search

TEXTS = 24
AT_MOST = 1.5  # times the error of transformers' own padded pass in the same precision
EXACT = 1e-4  # relative error of float32, or the error of transformers' own pass if that is larger


class Check(NamedTuple):
    """What was found, and what it must be."""

    name: str
    found: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the figure is at most the limit; what is no number fails."""
        return self.found <= self.limit


def all_checks(folder: Path, device: str, *, small: bool) -> Iterator[Check]:
    """Every check, one after the other.

    Args:
        folder: for models and runs.
        device: ``cuda`` or ``cpu``.
        small: toys instead of real widths.
    """
    for name in ("BERT-base", "XLM-R-base", "MPNet-base", "ModernBERT-base", "Qwen3-0.6B"):
        yield from _packed_against_padded(folder / f"check-{name}", name, SHAPES[name], device, small=small)
    yield from _dropout(device)
    yield from _same_search(device, small=small)
    yield from _same_bits(folder, device)


def _packed_against_padded(folder: Path, name: str, shape: Shape, device: str, *, small: bool) -> Iterator[Check]:
    """Vectors and gradients against transformers' padded pass in float64, beside its errors in the same precision."""
    model = write_model(folder, shape, small=small, few_layers=True, dropout=False)
    draw = random.Random(1)
    encoder = Encoder.load(model, device=device, precision="fp32")
    lengths = [draw.randint(3, 40 if small else 300) for _ in range(TEXTS)]
    texts = encoder.tokenize([random_text(draw, length) for length in lengths])
    weights = torch.randn(TEXTS, encoder.dim, generator=torch.Generator().manual_seed(0)).to(device)
    exact = _padded(model, texts, shape.pooling, weights, torch.float64)
    for precision, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        encoder = Encoder.load(model, device=device, precision=precision)
        vectors = encoder.embed(pack(texts))
        (vectors * weights).sum().backward()
        own = _errors((vectors, _gradient(encoder.backbone)), exact)
        theirs = _errors(_padded(model, texts, shape.pooling, weights, torch.float32, autocast=dtype), exact)
        for what, error, usual in zip(("vectors", "gradients"), own, theirs, strict=True):
            limit = AT_MOST * usual if dtype else max(EXACT, AT_MOST * usual)
            yield Check(f"{name}, {precision}: relative error of {what}", error, limit)


def _padded(
    model: Path,
    texts: Any,
    pooling: str,
    weights: Tensor,
    dtype: torch.dtype,
    autocast: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Vectors and gradient by transformers itself, over padded texts."""
    backbone = AutoModel.from_pretrained(model, dtype=dtype).to(weights.device)
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), backbone.config.pad_token_id, device=weights.device)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.as_tensor(np.asarray(text, dtype=np.int64))
        mask[row, : len(text)] = 1
    with torch.autocast(weights.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
        hidden = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    hidden = hidden.to(dtype)
    if pooling == "mean":
        pooled = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    else:
        place = mask.sum(1) - 1 if pooling == "last" else torch.zeros_like(mask[:, 0])
        pooled = hidden[torch.arange(len(texts), device=ids.device), place]
    vectors = torch.nn.functional.normalize(pooled, dim=-1)
    (vectors * weights).sum().backward()
    return vectors, _gradient(backbone)


def _gradient(model: Any) -> Tensor:
    """All weights' gradients end to end, in the order of their names."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return torch.cat([found[name].double().flatten() for name in sorted(found)])


def _errors(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> list[float]:
    pairs = zip(got, want, strict=True)
    return [float((g.detach().double() - w.detach()).norm() / w.detach().norm()) for g, w in pairs]


def _dropout(device: str) -> Iterator[Check]:
    """Rate, expectation and independence of dropped attention weights, and whether a seed draws the same again.

    A text of one token has one weight in each head: it is either dropped or divided by the probability to stay.
    """
    texts, heads, rate = 4096, 4, 0.25
    packing = Packing((1,) * texts, torch.device(device))
    value = torch.ones(texts, heads, 64, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)

    def kept(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return attend(value, value, value, packing, AttentionSettings(1.0, dropout=rate))[..., 0].float() > 0

    first, again, other = kept(1), kept(1), kept(2)
    error = 4 * (rate * (1 - rate) / (texts * heads)) ** 0.5
    yield Check("dropout: share that is dropped, off by", abs(float((~first).double().mean()) - rate), error)
    centred = first.double() - first.double().mean()
    between = (centred[:, 0] * centred[:, 1]).mean() / centred.var()
    following = (centred[1:] * centred[:-1]).mean() / centred.var()
    yield Check("dropout: correlation between heads", abs(float(between)), 4 / texts**0.5)
    yield Check("dropout: correlation between texts", abs(float(following)), 4 / (texts * heads) ** 0.5)
    yield Check("dropout: masks that differ under one seed", float((first != again).double().mean()), 0.0)
    differ = float((first != other).double().mean())
    yield Check("dropout: masks that differ under two seeds, off by", abs(differ - 2 * rate * (1 - rate)), 0.02)


def _same_search(device: str, *, small: bool) -> Iterator[Check]:
    """The documents that a search on the device finds, against those of a search on the CPU."""
    rows = 2_000 if small else 200_000
    random_state = np.random.default_rng(0)
    corpus, queries = (random_state.standard_normal((n, 384), dtype=np.float32) for n in (rows, 64))
    scores, wanted = search(queries, corpus, 10)
    _, found = search(queries, resident(corpus, torch.device(device)), 10)
    gaps = np.abs(np.diff(scores, axis=1)).min(axis=1)
    clear = gaps > 1e-4 * np.abs(scores).max()  # elsewhere the order of two documents is one of rounding
    yield Check("search: places that differ from the CPU's", float((wanted != found)[clear].mean()), 0.0)


def _same_bits(folder: Path, device: str) -> Iterator[Check]:
    """A run that is stopped and continued, against one that is not, and against itself."""
    model = write_model(folder / "bits-model", SHAPES["BERT-base"], small=True)
    pairs = folder / "bits.jsonl"
    queries, passages = write_pairs(pairs, 160, 64)
    held_out = write_tiny_collection(folder / "bits-eval", queries[0], passages[:2])
    config = TrainConfig(
        model=str(model), train_data=(pairs,), eval_data=held_out, output_dir=folder / "bits-whole", batch_size=16,
        passage_max_len=64, max_steps=8, save_steps=4, deterministic=True, device=device, resume="never",
        general_guard=False,
        cross_validate=False,
    )  # fmt: skip
    whole, again = (_weights(replace(config, output_dir=folder / name)) for name in ("bits-whole", "bits-again"))
    stopped = replace(config, output_dir=folder / "bits-stopped", resume="auto")
    with _signal_after(5):
        _weights(stopped)
    yield Check("--deterministic: two runs differ", float(whole != again), 0.0)
    yield Check("--deterministic: stopped and continued differs", float(whole != _weights(stopped)), 0.0)


def _weights(config: TrainConfig) -> str | None:
    """The digest of the weights that a run ends with; None if it was stopped."""
    try:
        with said_in(config.output_dir.parent / "train.log"):
            train(config)
    except Stopped:
        return None
    return hashlib.sha256((config.output_dir / "model.safetensors").read_bytes()).hexdigest()


@contextlib.contextmanager
def said_in(log: Path) -> Iterator[None]:
    """Inside of this block, what a run says goes to a file."""
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


@contextlib.contextmanager
def _signal_after(steps: int) -> Iterator[None]:
    """Inside of this block, this process is told to stop after so many optimizer steps."""
    left = iter(range(steps - 1, -1, -1))

    def count(*_: object) -> None:
        if next(left, None) == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    hook = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        hook.remove()
