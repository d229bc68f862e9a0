"""The commands that the documents show work: they run here on stand-ins for the files and models that they name."""

import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from command_lines import ROWS, write_rows
from documented import PAGES, ROOT, blocks
from tiny import WORDS, tiny_cross_encoder, tiny_model

from biencoder.cli import COMMANDS, main

OUTPUTS = {"--output-dir", "--output", "--run-file"}
# A step shows that training works; what else a run does by default is tested elsewhere and takes longer.
MORE = {"train": ["--max-steps", "1", "--no-general-guard", "--no-cross-validate"], "distill": ["--dim", "16"]}
SMALLER = {"--freeze-layers": "1", "--dim": "16", "--dims": "16"}  # than the stand-ins' layers and dimensions
TRAIN = "biencoder train --model BAAI/bge-small-en-v1.5 --train-data pairs.jsonl --output-dir my-model"


def run(line: str) -> int:
    """Run a command line that writes what it writes for the first time."""
    words = shlex.split(line)[1:]
    for i, (flag, value) in enumerate(list(pairwise(words)), 1):
        words[i] = SMALLER.get(flag, value)
        if flag in OUTPUTS and Path(value).is_dir():
            shutil.rmtree(value)
        elif flag in OUTPUTS:
            Path(value).unlink(missing_ok=True)
    return main([*words, *MORE.get(words[0], [])])


def write_collection(folder: Path) -> None:
    (folder / "qrels").mkdir(parents=True)
    write_rows(folder / "corpus.jsonl", [{"_id": f"d{i}", "text": WORDS[i]} for i in range(20)])
    write_rows(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"{WORDS[i]} too"} for i in range(5)])
    judgements = [f"q{i}\td{i}\t1" for i in range(5)]
    write_rows(folder / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *judgements])


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the documents name and do not make."""
    folder = tmp_path_factory.mktemp("documented")
    base = tiny_model(folder / "BAAI" / "bge-small-en-v1.5")
    for name in ("BAAI/bge-base-en-v1.5", "BAAI/bge-large-en-v1.5", "bert-base-uncased", "my-checkpoint"):
        shutil.copytree(base, folder / name)
    for seed in (1, 2, 3):
        shutil.copytree(base, folder / f"seed-{seed}")
    tiny_cross_encoder(folder / "my-reranker")
    for name in ("beir/scifact", "beir/nfcorpus", "my-beir-folder"):
        write_collection(folder / name)
    mined = [row | {"neg": [f"{WORDS[i + 50]} word7"]} for i, row in enumerate(ROWS)]
    for name, rows in {"pairs": ROWS, "more": ROWS[:20], "mined": mined}.items():
        write_rows(folder / f"{name}.jsonl", rows)
    write_rows(folder / "questions.jsonl", [{"_id": "q1", "text": "word1 word2"}])
    (folder / "passages.txt").write_text("word1 word2\nword3\n")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("*.py", "*.svg"))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert run(TRAIN) == 0
        assert run("biencoder distill --model my-model --output-dir my-static-model") == 0
    shutil.copytree(folder / "my-model", folder / "another-model")
    return folder


def runnable() -> list[tuple[str, list[str]]]:
    """The commands of each page that are run. A training takes a while: one that several pages show runs once."""
    shown = {
        page.name: [line for block in blocks(page, "sh") if not block.not_run for line in block.lines()]
        for page in PAGES
    }
    shown["--help"] = [command.example for name, command in COMMANDS.items() if name != "demo"]  # which has its tests
    seen: set[str] = {TRAIN}
    pages = []
    for page, lines in shown.items():
        pages.append((page, [line for line in lines if line not in seen]))
        seen |= {line for line in lines if line.startswith("biencoder train ")}
    return [(page, lines) for page, lines in pages if lines]


@pytest.mark.parametrize(("page", "lines"), runnable(), ids=[page for page, _ in runnable()])
def test_the_commands_of_a_page_work(
    page: str, lines: list[str], stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stand_ins)
    for line in lines:
        assert line.startswith("biencoder "), f"{page}: no test can run `{line}`; say why above the block"
        assert run(line) == 0, f"{page}: {line}"
