"""A decoder that reads both ways does so for everyone who loads it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import language_model, padded, pool, random_texts, relative_error, tiny_model
from transformers import AutoModel, GPTNeoConfig

from biencoder import Encoder
from biencoder.errors import UserError
from biencoder.model.adapting.causality import attention_of, is_decoder, set_attention
from biencoder.model.packing import pack

DECODERS = ["qwen2", "qwen2-window", "qwen3", "llama", "mistral", "gemma"]
LENGTHS = (30, 12, 12, 7, 2, 1)  # longer than the windows
TEXTS = random_texts(12)


def unpadded(features: dict[str, torch.Tensor]) -> list[list[int]]:
    rows = zip(features["input_ids"], features["attention_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_packed_equals_transformers_own_padded_pass_of_what_is_saved(kind: str, attention: str, tmp_path: Path) -> None:
    encoder = Encoder.load(language_model(tmp_path / "base", kind), pooling="mean", normalize=False)
    set_attention(encoder.backbone, attention)
    assert attention_of(encoder.backbone) == attention
    encoder.save(tmp_path / "saved")
    again = Encoder.load(tmp_path / "saved")
    assert attention_of(again.backbone) == attention
    first = {}
    for implementation in ("eager", "sdpa"):
        reference = AutoModel.from_pretrained(tmp_path / "saved", attn_implementation=implementation).eval()
        for side in ("right", "left"):
            features = padded(LENGTHS, side=side)
            want = pool(reference(**features).last_hidden_state, features["attention_mask"], "mean")
            for model in (encoder, again):
                model.backbone.eval()
                assert relative_error(model.embed(pack(unpadded(features))), want) <= 1e-5
            first[implementation, side] = want
    assert relative_error(first["eager", "right"], first["sdpa", "right"]) <= 1e-5


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma"])
def test_sentence_transformers_attends_as_we_do(kind: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = Encoder.load(tiny_model(tmp_path / "base", kind), pooling="mean", normalize=True)
    causal = encoder.encode(TEXTS)
    set_attention(encoder.backbone, "bidirectional")
    both_ways = encoder.encode(TEXTS)
    assert np.abs(causal - both_ways).max() > 1e-2
    encoder.save(tmp_path / "saved")
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, both_ways, atol=1e-5)


def test_back_to_causal(tmp_path: Path) -> None:
    backbone = Encoder.load(tiny_model(tmp_path, "qwen2-bidirectional")).backbone
    assert (is_decoder(backbone), attention_of(backbone)) == (True, "bidirectional")
    set_attention(backbone, "causal")
    assert (backbone.config.is_causal, attention_of(backbone)) == (True, "causal")


@pytest.mark.parametrize("kind", ["bert", "modernbert", "eurobert", "deberta-v2"])
def test_encoders_attend_one_way_only(kind: str, tmp_path: Path) -> None:
    backbone = Encoder.load(tiny_model(tmp_path, kind)).backbone
    set_attention(backbone, "bidirectional")  # as it does
    with pytest.raises(
        UserError, match=f"--attention causal: transformers does not offer it for {backbone.config.model_type}"
    ):
        set_attention(backbone, "causal")


def test_an_architecture_that_does_not_honour_it_is_refused() -> None:
    config = GPTNeoConfig(
        vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, attention_types=[[["global"], 1]],
        bos_token_id=1, eos_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    backbone = AutoModel.from_config(config)
    assert attention_of(backbone) == "causal"
    set_attention(backbone, "causal")
    with pytest.raises(UserError, match="--attention bidirectional: transformers does not offer it for gpt_neo"):
        set_attention(backbone, "bidirectional")
