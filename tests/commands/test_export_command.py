"""What ``biencoder export`` writes and says."""

import sys
from pathlib import Path

import pytest
from command_lines import fill

from biencoder.cli import main
from biencoder.commands.models import export


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_onnx_files_are_compared_with_the_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", "model", "--output-dir", "out", "--format", "onnx", "--int8", "--data", "beir"]
    assert main(["export", *asked]) == 0
    of_model, of_file, of_int8 = capsys.readouterr().out.splitlines()[-3:]
    figure = of_model.rsplit(" ", 1)[1]
    assert of_model.startswith("nDCG@10 of the model on ")
    assert of_file.startswith("out/onnx/model.onnx: ")
    assert "lowest cosine with the model's vectors 1.000000" in of_file
    assert of_file.endswith(f"nDCG@10 {figure}")
    assert of_int8.startswith("out/onnx/model_quantized.onnx: ")
    assert (place / "out" / "onnx" / "model.onnx").is_file()


@pytest.mark.usefixtures("place")
def test_a_file_with_other_vectors_is_not_to_be_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LOWEST_COSINE", 1.1)
    assert main(["export", "--model", "model", "--output-dir", "out", "--format", "onnx"]) == 2
    said = capsys.readouterr().err
    assert "out/onnx/model.onnx: its vectors differ from the model's by up to" in said
    assert "do not use it" in said


@pytest.mark.parametrize("given", [["--int8"], ["--data", "beir"]])
@pytest.mark.usefixtures("place")
def test_what_only_onnx_files_have(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--model", "model", "--output-dir", "out", *given]) == 2
    assert f"{given[0]} needs --format onnx" in capsys.readouterr().err


@pytest.mark.usefixtures("place")
def test_a_split_without_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["export", "--model", "model", "--output-dir", "out", "--format", "onnx", "--split", "test"]
    assert main(asked) == 2
    assert "--split test needs --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "message"), [("package", "--format onnx needs onnxscript"), ("data", "no-such-folder")]
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
