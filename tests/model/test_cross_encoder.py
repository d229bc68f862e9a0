from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import WORDS, random_texts, tiny_cross_encoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from biencoder.device.cpu import Cpu
from biencoder.errors import UserError
from biencoder.model import cross_encoder
from biencoder.model.cross_encoder import CrossEncoder

PAIRS = list(zip(random_texts(40, longest=8, seed=1), random_texts(40, longest=70, seed=2), strict=True))


@pytest.mark.parametrize("kind", ["bert", "roberta", "qwen3"])
def test_scores_are_those_of_transformers_pair_by_pair(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_cross_encoder(tmp_path, kind)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    want = []
    with torch.no_grad():
        for query, passage in PAIRS:
            features = tokenizer(query, passage, truncation=True, max_length=48, return_tensors="pt")
            want.append(float(model.eval()(**features).logits[0, 0]))
    assert np.std(want) > 0.01
    monkeypatch.setattr(Cpu, "encode_tokens", 200)
    monkeypatch.setattr(cross_encoder, "PAIRS_AT_ONCE", 16)
    told: list[int] = []
    scores = CrossEncoder.load(folder, max_length=48).score(PAIRS, told.append)
    np.testing.assert_allclose(scores, want, atol=1e-5)
    assert told[-1] == len(PAIRS)
    assert len(told) > 6


def test_the_model_says_how_long_a_pair_may_be(tmp_path: Path) -> None:
    encoder = CrossEncoder.load(tiny_cross_encoder(tmp_path))
    assert encoder.max_length == 96
    assert np.isfinite(encoder.score([("word1", " ".join(WORDS))])).all()


def test_equal_fingerprints_mean_equal_scores(tmp_path: Path) -> None:
    folder = tiny_cross_encoder(tmp_path)
    first, again, shorter, changed = (CrossEncoder.load(folder, max_length=n) for n in (None, None, 20, None))
    with torch.no_grad():
        changed.model.classifier.bias.add_(1.0)
    assert first.fingerprint == again.fingerprint
    assert len({encoder.fingerprint for encoder in (first, shorter, changed)}) == 3


def test_a_model_whose_scores_are_not_finite(tmp_path: Path) -> None:
    encoder = CrossEncoder.load(tiny_cross_encoder(tmp_path))
    with torch.no_grad():
        encoder.model.classifier.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="--reranker: gave scores that are not finite"):
        encoder.score(PAIRS[:1])
