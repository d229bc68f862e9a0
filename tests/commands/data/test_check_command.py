from pathlib import Path
from typing import Any

import pytest
from data_files import row, write_collection, write_jsonl

from biencoder.commands.data.check import run
from biencoder.config import CheckConfig
from biencoder.errors import UserError
from biencoder.model.files.pretrained import load_tokenizer
from biencoder.model.tokens import token_counter


def config(path: Path, **more: Any) -> CheckConfig:
    return CheckConfig(train_data=(path,), **more)


def test_clean_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(write_jsonl(tmp_path / "a.jsonl", [row("q", "p"), row("r", "s")])))
    printed = capsys.readouterr().out
    assert "2 in 1 file" in printed
    assert "warn" not in printed
    assert printed.splitlines()[-1] == "nothing wrong was found"


def test_findings_and_skipped_rows_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row("asked", "p", neg=["p"]), {"query": "", "pos": "p"}])
    exam = write_collection(
        tmp_path / "exam", [{"_id": "d", "text": "p"}], [{"_id": "e", "text": "asked"}], dev="e\td\t1"
    )
    run(config(path, eval_data=exam, on_bad_row="skip", group_size=2))
    lines = capsys.readouterr().out.splitlines()
    assert "evaluation: exam (dev): 1 queries, 1 documents" in lines
    assert f"  {path}:2: query is empty" in lines
    warned = [line for line in lines if line.endswith("warn")]
    assert [line.split("  ")[0] for line in warned] == [
        "bad rows left out",
        "positive is also a negative",
        "query also in the evaluation",
        "positive also answers an evaluation query",
    ]
    assert lines[-1] == "4 things to look at"


def test_bad_rows_stop_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl:1: no query"):
        run(config(write_jsonl(tmp_path / "a.jsonl", [{"body": "t"}])))
    assert capsys.readouterr().out == ""


def test_truncation_is_counted_with_the_models_tokenizer(
    tmp_path: Path, minilm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert token_counter(load_tokenizer(minilm))(["hello world", "", "word " * 1000]).tolist() == [4, 2, 1002]
    path = write_jsonl(tmp_path / "a.jsonl", [row("one two", "a b c d"), row("one two three", "a")])
    run(config(path, model=minilm, query_max_len=4, passage_max_len=5))
    printed = " ".join(capsys.readouterr().out.split())
    assert "queries cut at 4 tokens 50.0% (of 2 sampled) warn" in printed
    assert "passages cut at 5 tokens 50.0% (of 2 sampled) warn" in printed


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row("q", "p")])
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match=r"--model .*model: no model in this folder"):
        run(config(path, model=str(tmp_path / "model")))
