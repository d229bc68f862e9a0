"""The encoder: what it loads, that it saves what others load, and that its vectors are theirs."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import WORDS, pool, random_texts, tiny_model
from transformers import AutoModel, AutoTokenizer

from biencoder import Encoder
from biencoder.device.cpu import Cpu
from biencoder.errors import UserError
from biencoder.model.packing import pack

TEXTS = [*random_texts(60, longest=40), "", "   ", "unheard of", " word1  word2\n", " ".join(WORDS)]


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one.astype(np.float64) * other).sum(1) / norms)


def sentence_transformer(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize(
    ("kind", "pooling", "normalize"),
    [("bert", "mean", True), ("bert", "cls", False), ("roberta", "mean", True), ("mpnet", "mean", True),
     ("modernbert", "cls", True), ("qwen3", "last", True), ("deberta-v2", "mean", False)],
)  # fmt: skip
def test_sentence_transformers_gives_the_same_vectors(tmp_path: Path, kind: str, pooling: str, normalize: bool) -> None:
    encoder = Encoder.load(tiny_model(tmp_path / "base", kind), pooling=pooling, normalize=normalize, max_length=30)
    encoder.settings = encoder.settings.with_prompts("word7 word8 ", "word9 ")
    encoder.save(tmp_path / "saved")
    other = sentence_transformer(tmp_path / "saved")
    again = Encoder.load(tmp_path / "saved")
    for ours, anew, theirs in (
        (encoder.encode_queries(TEXTS), again.encode_queries(TEXTS), other.encode_query(TEXTS)),
        (encoder.encode_passages(TEXTS), again.encode_passages(TEXTS), other.encode_document(TEXTS)),
        (encoder.encode_passages(TEXTS), again.encode_passages(TEXTS), other.encode(TEXTS)),
    ):
        assert cosines(ours, theirs).min() >= 0.99999
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_array_equal(ours, anew)
    assert cosines(encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS)).min() < 0.999
    assert other.similarity_fn_name == ("cosine" if normalize else "dot")


def test_transformers_loads_what_is_saved(tmp_path: Path, bert: Path) -> None:
    encoder = Encoder.load(bert, pooling="mean", normalize=False)
    encoder.save(tmp_path)
    model, tokenizer = AutoModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.config._attn_implementation == "sdpa"
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        want = pool(model.eval()(**inputs).last_hidden_state, inputs["attention_mask"], "mean")
    np.testing.assert_allclose(encoder.encode(TEXTS), want.numpy(), atol=1e-5)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".") or path.suffix in (".bin", ".pt")]


@pytest.mark.slow
def test_a_thousand_real_texts(minilm: str, medquad: Path, tmp_path: Path) -> None:
    with gzip.open(medquad / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][::13][:500]
    queries, passages = [row["query"] for row in rows], [row["pos"][0] for row in rows]
    encoder = Encoder.load(minilm, max_length=48)
    encoder.settings = encoder.settings.with_prompts("question: ", "answer: ")
    encoder.save(tmp_path)
    other = sentence_transformer(tmp_path)
    lowest = min(
        cosines(encoder.encode_queries(queries), other.encode_query(queries)).min(),
        cosines(encoder.encode_passages(passages), other.encode_document(passages)).min(),
    )
    print(f"{len(queries) + len(passages)} real texts: lowest cosine {lowest:.8f}")
    assert lowest >= 0.99999


def test_the_base_models_own_settings_are_taken(minilm: str) -> None:
    encoder = Encoder.load(minilm)
    assert (encoder.settings.pooling, encoder.settings.normalize, encoder.max_length) == ("mean", True, 256)
    asked = Encoder.load(minilm, pooling="cls", normalize=False, max_length=32)
    assert (asked.settings.pooling, asked.settings.normalize, asked.max_length) == ("cls", False, 32)


@pytest.mark.parametrize(
    ("kind", "pooling"), [("bert", "cls"), ("xlm-roberta", "cls"), ("modernbert", "cls"), ("eurobert", "cls"),
                          ("qwen3", "last"), ("mistral", "last"), ("qwen2-bidirectional", "last")],
)  # fmt: skip
def test_automatic_pooling_of_a_plain_folder(tmp_path: Path, kind: str, pooling: str) -> None:
    settings = Encoder.load(tiny_model(tmp_path, kind)).settings
    assert (settings.pooling, settings.normalize) == (pooling, True)


def test_lengths_are_those_that_the_positions_have_room_for(tmp_path: Path) -> None:
    for kind, room in (("bert", 128), ("roberta", 126), ("mpnet", 126)):
        encoder = Encoder.load(tiny_model(tmp_path / kind, kind), max_length=500)
        assert encoder.max_length == room
        assert len(encoder.tokenize([" ".join(WORDS)])[0]) == room
        assert np.isfinite(encoder.encode([" ".join(WORDS)])).all()
    assert Encoder.load(tmp_path / "bert").max_length == 96  # the tokenizer's
    assert [len(ids) for ids in encoder.tokenize(["word1 word2 word3"], max_length=4)] == [4]


def test_vectors_depend_on_their_own_text_only(bert: Path) -> None:
    encoder = Encoder.load(bert, pooling="mean")
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1])[::-1], together, atol=1e-6)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_many_texts_come_back_in_their_order(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(bert)
    want = encoder.encode(TEXTS)
    monkeypatch.setattr(Cpu, "encode_texts", 7)
    monkeypatch.setattr(Cpu, "encode_tokens", 50)
    done: list[int] = []
    np.testing.assert_allclose(encoder.encode(TEXTS, progress=done.append), want, atol=1e-6)
    assert done == sorted(done)
    assert done[-1] == len(TEXTS)
    assert encoder.encode([]).shape == (0, 32)


def test_encoding_leaves_the_model_in_its_mode(tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path, dropout=True))
    encoder.train()
    first, second = encoder.encode(TEXTS), encoder.encode(TEXTS)
    np.testing.assert_array_equal(first, second)
    assert encoder.training
    assert encoder.embed(pack([[2, 5, 3]])).requires_grad


def test_bf16_rounds_but_gives_float32(bert: Path) -> None:
    exact, rounded = (Encoder.load(bert, precision=p).encode(TEXTS) for p in ("fp32", "bf16"))
    assert rounded.dtype == np.float32
    assert not np.array_equal(exact, rounded)
    assert cosines(exact, rounded).min() > 0.995


def test_the_fingerprint_follows_weights_and_settings(bert: Path) -> None:
    one, same, other = (Encoder.load(bert, pooling=p) for p in ("cls", "cls", "mean"))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    with torch.no_grad():
        next(same.backbone.parameters())[0, 0] += 1
    assert one.fingerprint != same.fingerprint


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "cut off":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "a layer is missing":
        tensors = {name: t for name, t in load_file(weights).items() if "layer.1." not in name}
        save_file(tensors, weights, metadata={"format": "pt"})
    elif how == "other sizes":
        tensors = {name: t if t.ndim < 2 else t[:, : t.shape[1] // 2] for name, t in load_file(weights).items()}
        save_file({name: t.contiguous() for name, t in tensors.items()}, weights, metadata={"format": "pt"})
    elif how == "no weights":
        weights.unlink()
    elif how == "unknown architecture":
        (folder / "config.json").write_text('{"model_type": "nonesuch"}')
    elif how == "configuration is not JSON":
        (folder / "config.json").write_text("{")
    elif how == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()


@pytest.mark.parametrize(
    "how",
    ["cut off", "a layer is missing", "other sizes", "no weights", "unknown architecture", "configuration is not JSON",
     "no tokenizer"],
)  # fmt: skip
def test_a_damaged_model_is_a_clear_error_and_never_random_weights(tmp_path: Path, how: str) -> None:
    damage(tiny_model(tmp_path), how)
    with pytest.raises(UserError, match=f"{tmp_path}.*(cannot be loaded|not valid JSON)") as caught:
        Encoder.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model in this folder"):
        Encoder.load(tmp_path)
    with pytest.raises(UserError, match="no such folder, and the model hub does not have it"):
        Encoder.load(tmp_path / "absent")
    with pytest.raises(UserError, match="the model hub does not have it"):
        Encoder.load("nobody/nothing")


@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_cut_short_are_those_of_sentence_transformers(bert: Path, tmp_path: Path, normalize: bool) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = Encoder.load(bert, pooling="mean", normalize=normalize, max_length=30)
    encoder.save(tmp_path)
    short = Encoder.load(tmp_path, dim=12)
    other = SentenceTransformer(str(tmp_path), device="cpu", truncate_dim=12)
    ours, theirs = short.encode(TEXTS), other.encode(TEXTS, normalize_embeddings=normalize)
    assert ours.shape == (len(TEXTS), short.dim) == (len(TEXTS), 12)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(encoder.cut(encoder.encode(TEXTS), 12), ours, atol=1e-6)
    assert short.fingerprint != encoder.fingerprint


def test_more_dimensions_than_the_model_has(bert: Path) -> None:
    with pytest.raises(UserError, match=r"--dim 33: .* makes 32 dimensions"):
        Encoder.load(bert, dim=33)
