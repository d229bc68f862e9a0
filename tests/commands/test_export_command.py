"""What ``biencoder export`` writes and says."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import check_refused, fill
from fault_points import AtOperation
from killed import COMMAND, kill_at
from tiny import random_texts

from biencoder import Encoder
from biencoder.cli import main
from biencoder.commands.models import export
from biencoder.errors import UserError
from biencoder.model.adapting.lora import add_lora


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("runtime", "file", "small"),
    [
        ("onnx", "onnx/model.onnx", "onnx/model_quantized.onnx"),
        ("openvino", "openvino/openvino_model.xml", "openvino/openvino_model_qint8_quantized.xml"),
    ],
)
def test_files_for_other_runtimes_are_compared_with_the_model(
    runtime: str, file: str, small: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", "model", "--output-dir", "out", "--format", runtime, "--int8", "--data", "beir"]
    assert main(["export", *asked]) == 0
    of_model, of_file, of_int8, of_folder = capsys.readouterr().out.splitlines()
    figure = of_model.rsplit(" ", 1)[1]
    assert of_model.startswith("nDCG@10 of the model on ")
    assert of_file.startswith(f"{file}: ")
    assert "lowest cosine with the model's vectors 1.000000" in of_file
    assert of_file.endswith(f"nDCG@10 {figure}")
    assert of_int8.startswith(f"{small}: ")
    assert of_folder == "out: sentence-transformers format; its vectors equal the model's exactly"
    assert (place / "out" / file).is_file()
    check_what_text_embeddings_inference_reads(place / "out")


def check_what_text_embeddings_inference_reads(folder: Path) -> None:
    """The files and fields that its router and its ONNX backend ask for, by their source."""
    config = json.loads((folder / "config.json").read_text())
    sizes = ("max_position_embeddings", "pad_token_id", "hidden_size", "num_hidden_layers")
    assert all(type(config[name]) is int for name in sizes)
    assert type(config["model_type"]) is str
    assert type(config["architectures"]) is list
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_cls_token"] is True
    assert pooling["pooling_mode_mean_tokens"] is False
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 96
    prompts = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts == {"query": "", "document": ""}
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer.get("padding_side", "right") in ("left", "right")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast", "transformers 4 knows no other name of it"
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.usefixtures("place")
def test_a_file_with_other_vectors_is_not_kept(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LOWEST_COSINE", 1.1)
    assert main(["export", "--model", "model", "--output-dir", "out", "--format", "onnx"]) == 2
    said = capsys.readouterr().err
    assert (
        "out: nothing is written there, because the vectors of onnx/model.onnx differ from the model's by up to" in said
    )
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (AtOperation(1, operation="rename", path=".model.*.tmp/config.json"), []),  # the first puts the copy together
        (AtOperation(0, operation="mkdir", path=".model.*.tmp/onnx"), ["--format", "onnx"]),
    ],
    ids=["before the last file is moved", "before the ONNX file is written"],
)
def test_a_killed_export_leaves_nothing_that_looks_complete(fault: AtOperation, words: list[str], place: Path) -> None:
    command = ["export", "--model", place / "model", "--output-dir", place / "out", *words]
    kill_at(fault, place / "out", COMMAND, *command)
    assert not (place / "out" / "config.json").exists()
    with pytest.raises(UserError, match="no model in this folder"):
        Encoder.load(place / "out")


def adapter(place: Path) -> Path:
    """A LoRA adapter of the model, as after some steps."""
    encoder = Encoder.load(place / "model")
    add_lora(encoder.backbone, rank=2, alpha=4.0, dropout=0.0, first_layer=0, base=str(place / "model"), seed=1)
    for name, parameter in encoder.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(2))
    encoder.save(place / "adapter")
    return place / "adapter"


@pytest.mark.parametrize("merged", [True, False])
def test_an_adapter_is_merged_or_stays_one(merged: bool, place: Path) -> None:
    from sentence_transformers import SentenceTransformer

    given = adapter(place)
    words = ["--model", str(given), "--output-dir", "out", "--pooling", "mean"]
    assert main(["export", *words, "--merge-adapter" if merged else "--no-merge-adapter"]) == 0
    assert (place / "out" / "config.json").exists() == merged
    assert (place / "out" / "adapter_config.json").exists() != merged
    assert bool(list((place / "out").glob("model*.safetensors"))) == merged
    texts = random_texts(9)
    want = Encoder.load(given, pooling="mean").encode(texts)
    assert np.abs(want - Encoder.load("model", pooling="mean").encode(texts)).max() > 1e-3
    np.testing.assert_allclose(Encoder.load("out").encode(texts), want, atol=1e-6)
    theirs = SentenceTransformer("out", device="cpu").encode(texts)
    np.testing.assert_allclose(theirs, want, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--no-merge-adapter: model is a whole model, not an adapter; leave the flag out"),
        (["--format", "openvino"], "--no-merge-adapter: --format openvino writes whole models only"),
    ],
)
def test_what_cannot_stay_an_adapter(
    words: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused(
        place, ["export", "--model", "model", "--output-dir", "out", "--no-merge-adapter", *words], [message], capsys
    )


@pytest.mark.parametrize("given", [["--int8"], ["--data", "beir"]])
@pytest.mark.usefixtures("place")
def test_what_only_files_of_other_runtimes_have(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--model", "model", "--output-dir", "out", *given]) == 2
    assert f"{given[0]} needs --format onnx or openvino" in capsys.readouterr().err


@pytest.mark.usefixtures("place")
def test_a_split_without_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["export", "--model", "model", "--output-dir", "out", "--format", "onnx", "--split", "test"]
    assert main(asked) == 2
    assert "--split test needs --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "message"), [("package", "--format onnx needs the package onnxscript"), ("data", "no-such-folder")]
)
def test_what_is_missing_is_said_before_anything_is_written(
    missing: str, message: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["export", "--model", "model", "--output-dir", "out", "--format", "onnx"]
    if missing == "package":
        monkeypatch.setitem(sys.modules, "onnxscript", None)
    else:
        asked += ["--data", "no-such-folder"]
    assert main(asked) == 2
    assert message in capsys.readouterr().err
    assert not (place / "out").exists()
