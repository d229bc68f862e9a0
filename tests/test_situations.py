"""What docs/situations.md tells people who come from other tools is so."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest
from documented import ROOT, blocks

from biencoder.cli import main

PAGE = ROOT / "docs" / "situations.md"


def theirs(tool: str) -> set[str]:
    """The names in the first column of a tool's table."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition(f"## I come from {tool}\n")
    cells = re.findall(r"^\| (.+?) \|", section.partition("\n## ")[0], re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)", cell)}


def test_the_names_of_sentence_transformers_are_its_own() -> None:
    import sentence_transformers
    from sentence_transformers.sentence_transformer import losses

    classes = [getattr(losses, name) for name in losses.__all__]
    known = {field.name for field in dataclasses.fields(sentence_transformers.SentenceTransformerTrainingArguments)}
    known |= {name for each in classes for name in inspect.signature(each).parameters} | set(losses.__all__)
    known |= {"SentenceTransformer", "mine_hard_negatives", "train_dataset"}
    assert len(theirs("sentence-transformers")) > 20
    assert theirs("sentence-transformers") - known == set()


def test_the_names_of_flag_embedding_are_its_own() -> None:
    arguments = pytest.importorskip("FlagEmbedding.finetune.embedder.encoder_only.m3", reason="needs biencoder[bench]")
    classes = [each for name, each in vars(arguments).items() if name.endswith("Arguments")]
    known = {field.name for each in classes for field in dataclasses.fields(each)}
    assert theirs("FlagEmbedding") - known == {"cls", "mean", "last_token", "kl_div"}


def test_a_file_of_tevatron_becomes_training_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    passage = {"docid": "1", "title": "Reset", "text": "Hold the button."}
    row = {"query_id": "q", "query": "how to reset", "positive_passages": [passage], "negative_passages": []}
    Path("tevatron.jsonl").write_text(json.dumps(row) + "\n")
    (block,) = blocks(PAGE, "python")
    exec(compile(block.text, PAGE.name, "exec"), {})
    written = Path("from-tevatron.jsonl").read_text()
    assert json.loads(written) == {"query": "how to reset", "pos": ["Reset Hold the button."], "neg": []}
    assert main(["check", "--train-data", "from-tevatron.jsonl"]) == 0
