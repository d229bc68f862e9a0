"""What the base model finds near held-out queries and answers by the first words of passages."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import small_run, stop_in_step
from tiny import WORDS, tiny_model

from biencoder import Encoder
from biencoder.training import preparation
from biencoder.training.run import train
from biencoder.training.sources import glance as module
from biencoder.training.sources.glance import GLANCE, glance

EVALUATION = "batches/evaluation.json"


def test_the_nearest_passages_by_their_first_words(tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path))
    encoder.adopt(encoder.settings.with_prompts("query: ", "passage: "))
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, size=2 * GLANCE)) for _ in range(50)]
    queries, answers, passages = texts[:3], texts[3:8], texts[8:]
    near_queries, near_answers = glance(encoder, 100).find(queries, answers, passages, 4)
    assert len(encoder.tokenize(texts[:1])[0]) > GLANCE + 10
    cut = Encoder.load(tmp_path, max_length=len(encoder.tokenize([""], "passage: ")[0]) + GLANCE)
    cut.adopt(cut.settings.with_prompts(None, "passage: "))
    vectors, asked = cut.encode_passages(passages), encoder.encode_queries(queries)
    for found, near in ((asked, near_queries), (cut.encode_passages(answers), near_answers)):
        np.testing.assert_array_equal(near, np.argsort(-(found @ vectors.T), axis=1)[:, :4])


def test_a_resumed_run_evaluates_on_the_passages_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_run(tmp_path)
    monkeypatch.setattr(preparation, "HELD_OUT_PASSAGES", 30)
    whole = replace(config, output_dir=tmp_path / "whole")
    assert train(whole) is not None
    chosen = (whole.output_dir / EVALUATION).read_text()
    assert "those nearest to queries and answers" in chosen
    stop_in_step(9, config, monkeypatch)
    monkeypatch.setattr(module, "_find", lambda *_: pytest.fail("a resumed run must not choose again"))
    assert train(config) is not None
    assert (config.output_dir / EVALUATION).read_text() == chosen
    assert (config.output_dir / "eval.json").read_text() == (whole.output_dir / "eval.json").read_text()
