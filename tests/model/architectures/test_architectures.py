"""Packed equals padded, for every architecture that we say we support."""

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    ALL_CONFIGS,
    CONFIGS,
    gradient_errors,
    gradients,
    padded,
    pool,
    random_texts,
    relative_error,
    tiny_model,
)
from torch import Tensor
from transformers import AutoModel

from biencoder import BiEncoderModel, Encoder
from biencoder.errors import UserError
from biencoder.model.architectures.static import STATIC
from biencoder.model.architectures.table import FIRST_POSITION
from biencoder.model.packing import pack

CPU = torch.device("cpu")
TOLERANCE = 1e-5
ON_A_GPU = 3e-5  # it adds up in another order, and the worst of some hundred parameters is looked at
LENGTHS = (7, 30, 1, 12, 12, 2, 30, 5, 12)  # longer than the local windows; equal ones; not sorted
ABSOLUTE = {"bert", "distilbert", "electra", "ernie"}  # plain, they count padding on the left as positions

DECODERS = {"qwen2", "qwen2-window", "qwen3", "llama", "mistral", "gemma"}
NO_SDPA = ("mpnet", "deberta-v2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: tiny_model(tmp_path_factory.mktemp(kind), kind) for kind in CONFIGS}


def plain(folder: Path, attention: str, device: torch.device = CPU) -> Any:
    """transformers' own model, unmodified; in float64 where it can be (eager attention is float32 in its softmax)."""
    dtype = torch.float64 if attention == "sdpa" else torch.float32
    return AutoModel.from_pretrained(folder, attn_implementation=attention, dtype=dtype).to(device).train()


def on(device: torch.device, features: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.to(device) for name, values in features.items()}


def features_for(model: Any, side: str) -> dict[str, Tensor]:
    features = on(model.device, padded(LENGTHS, side=side, padding=model.config.pad_token_id))
    if side == "left" and model.config.model_type in ABSOLUTE:
        features["position_ids"] = (features["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return features


def encode(model: BiEncoderModel, features: dict[str, Tensor]) -> Tensor:
    vectors = model.encode(features)
    assert vectors is not None
    return vectors


def compare(model: BiEncoderModel, reference: Any, side: str, pooling: str) -> tuple[float, float, float]:
    """Relative errors of vectors, of the worst parameter's gradient, and of all gradients."""
    features = features_for(reference, side)
    weights = torch.linspace(-1, 1, len(LENGTHS) * 32, device=reference.device).view(-1, 32)
    want = pool(reference(**features).last_hidden_state, features["attention_mask"], pooling)
    (want * weights).sum().backward()
    features.pop("position_ids", None)
    model.encoder.adopt(replace(model.encoder.settings, pooling=pooling))
    got = encode(model, features)
    (got * weights).sum().backward()
    errors = relative_error(got, want), *gradient_errors(gradients(model.model), gradients_as(model, reference))
    for parameters in (model, reference):
        parameters.zero_grad()
    return errors


def gradients_as(model: BiEncoderModel, reference: Any) -> dict[str, Tensor]:
    trained = gradients(model.model).keys()
    return {name: gradient for name, gradient in gradients(reference).items() if name in trained}


@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_equals_padded(kind: str, folders: dict[str, Path], device: torch.device) -> None:
    model = BiEncoderModel(str(folders[kind])).to(device).train()
    worst = torch.zeros(3)
    for attention in ("eager",) if kind in NO_SDPA else ("eager", "sdpa"):
        reference = plain(folders[kind], attention, device)
        for side in ("right", "left"):
            for pooling in ("mean", "last" if kind in DECODERS else "cls"):
                worst = worst.maximum(torch.tensor(compare(model, reference, side, pooling)))
    print(f"{kind}: vectors {worst[0]:.1e}, gradient of the worst parameter {worst[1]:.1e}, all {worst[2]:.1e}")
    assert worst.max() <= (TOLERANCE if device.type == "cpu" else ON_A_GPU)


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "mpnet"])  # transformers cannot checkpoint MPNet
def test_packed_equals_padded_with_gradient_checkpointing(
    kind: str, folders: dict[str, Path], device: torch.device
) -> None:
    model = BiEncoderModel(str(folders[kind])).to(device).train()
    model.gradient_checkpointing_enable()
    errors = compare(model, plain(folders[kind], "eager", device), "right", "mean")
    assert max(errors) <= TOLERANCE


def test_every_architecture_in_the_table_is_tested() -> None:
    tested = {kind.removesuffix("-window").removesuffix("-bidirectional") for kind in ALL_CONFIGS}
    assert FIRST_POSITION.keys() - {STATIC} == tested - {"deberta-v2"}  # tests/model/test_static.py tests those


def test_token_types_reach_the_model(folders: dict[str, Path]) -> None:
    for kind in ("bert", "deberta-v2"):
        model, reference = BiEncoderModel(str(folders[kind])), plain(folders[kind], "eager")
        features = padded(LENGTHS)
        without = encode(model, features)
        features["token_type_ids"] = features["attention_mask"] * (torch.arange(max(LENGTHS)) >= 3)
        got = encode(model, features)
        want = pool(reference(**features).last_hidden_state, features["attention_mask"], "cls")
        assert relative_error(got, want) <= TOLERANCE
        if reference.config.type_vocab_size:
            assert relative_error(got, without) > 1e-2


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_prepared_model_still_takes_padded_input(kind: str, side: str, folders: dict[str, Path]) -> None:
    reference = plain(folders[kind], "eager")
    features = features_for(reference, side)
    real = features["attention_mask"].bool()
    got = BiEncoderModel(str(folders[kind])).model(**features).last_hidden_state[real]
    assert relative_error(got, reference(**features).last_hidden_state[real]) <= TOLERANCE


@pytest.mark.parametrize("kind", CONFIGS)
def test_bf16_autocast_stays_near(kind: str, folders: dict[str, Path], device: torch.device) -> None:
    model = BiEncoderModel(str(folders[kind]), normlized=True, sentence_pooling_method="mean", temperature=0.1).eval()
    features = on(device, padded(LENGTHS, padding=model.config.pad_token_id))
    model.to(device)
    exact = encode(model, features)
    with torch.autocast(device.type, torch.bfloat16):
        rounded = encode(model, features)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert (exact * rounded).sum(-1).min() > 0.99


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_a_padding_token_inside_of_a_text_is_counted_as_the_model_does(kind: str, folders: dict[str, Path]) -> None:
    """RoBERTa gives no position to what looks like padding: a text may well say "<pad>"."""
    model, reference = BiEncoderModel(str(folders[kind])), plain(folders[kind], "eager")
    features = features_for(reference, "right")
    features["input_ids"][1, 3] = features["input_ids"][3, 0] = 1
    want = pool(reference(**features).last_hidden_state, features["attention_mask"], "cls")
    assert relative_error(encode(model, features), want) <= TOLERANCE


def test_an_unsupported_architecture_is_padded_and_said(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        encoder = Encoder.load(folders["deberta-v2"], pooling="mean", normalize=False)
        BiEncoderModel(str(folders["deberta-v2"]))
    assert sum("deberta-v2: packing is not exact" in record.message for record in caplog.records) == 2
    assert encoder.first_position is None
    texts = random_texts(7)
    reference = plain(folders["deberta-v2"], "eager").eval()
    inputs = encoder.tokenizer(texts, return_tensors="pt", padding=True)
    want = pool(reference(**inputs).last_hidden_state, inputs["attention_mask"], "mean")
    assert relative_error(torch.from_numpy(encoder.encode(texts)), want) <= TOLERANCE


def test_a_model_with_two_meanings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use_bidirectional_attention"):
        Encoder.load(tiny_model(tmp_path, "gemma", use_bidirectional_attention=True))


def test_padding_stays_a_small_part(folders: dict[str, Path]) -> None:
    """One long text and many short ones, in one matrix, would be nearly all padding."""
    encoder = Encoder.load(folders["deberta-v2"])
    shapes = []
    encoder.backbone.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(inputs["input_ids"].shape), with_kwargs=True
    )
    lengths = [90, 20, 20, 19, *[3] * 50, 2]
    encoder.embed(pack([[7] * length for length in lengths]))
    assert sum(rows * columns for rows, columns in shapes) * 0.8 <= sum(lengths)
    assert len(shapes) == 3


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_a_deep_copy_is_a_model_of_its_own(kind: str, folders: dict[str, Path]) -> None:
    model = BiEncoderModel(str(folders[kind])).eval()
    before = encode(model, padded(LENGTHS, padding=1))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(encode(copied, padded(LENGTHS, padding=1)), before)


@pytest.mark.parametrize("kind", CONFIGS)
def test_attention_dropout_reaches_every_architecture(kind: str, tmp_path: Path, device: torch.device) -> None:
    folder = tiny_model(tmp_path, kind, attention_probs_dropout_prob=0.3, attention_dropout=0.3)
    model = BiEncoderModel(str(folder), sentence_pooling_method="mean").to(device).train()
    features = on(device, padded(LENGTHS, padding=model.config.pad_token_id))

    def vectors(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return encode(model, features)

    assert torch.equal(vectors(1), vectors(1))
    assert relative_error(vectors(1), vectors(2)) > 1e-2
    vectors(1).sum().backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    model.eval()
    assert torch.equal(vectors(1), vectors(2))
