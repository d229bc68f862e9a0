"""The commands that the documents show work: they run here on stand-ins for the files and models that they name."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from command_lines import ROWS, write_rows
from documented import PAGES, ROOT, blocks, run_small
from tiny import WORDS, tiny_cross_encoder, tiny_model

from biencoder.cli import COMMANDS
from biencoder.serving import server

TRAIN = "biencoder train --model BAAI/bge-small-en-v1.5 --train-data pairs.jsonl --output-dir my-model"
TUTORIAL = ROOT / "docs" / "tutorial.md"  # which has a test of its own


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
    (folder / "docs").mkdir()
    for name in ("check.md", "mine.md"):
        shutil.copy(ROOT / "docs" / name, folder / "docs")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert run_small(TRAIN) == 0
        assert run_small("biencoder distill --model my-model --output-dir my-static-model") == 0
    shutil.copytree(folder / "my-model", folder / "another-model")
    shutil.copytree(folder / "my-static-model", folder / "my-tuned-static-model")
    return folder


def runnable() -> list[tuple[str, list[str]]]:
    """The commands of each page that are run. A training takes a while: one that several pages show runs once."""
    shown = {
        page.name: [line for block in blocks(page, "sh") if not block.not_run for line in block.lines()]
        for page in PAGES
        if page != TUTORIAL
    }
    shown["--help"] = [command.example for name, command in COMMANDS.items() if name != "demo"]  # which has its tests
    seen: set[str] = {TRAIN}
    pages = []
    for page, lines in shown.items():
        pages.append((page, [line for line in lines if line not in seen]))
        seen |= {line for line in lines if line.startswith("biencoder train ")}
    return [(page, lines) for page, lines in pages if lines]


@pytest.fixture
def service_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service stops when it has started."""

    async def start_and_stop(self: Any, sockets: Any = None) -> None:
        await start(self, sockets)
        self.should_exit = True

    start = server._Server.startup
    monkeypatch.setattr(server._Server, "startup", start_and_stop)


@pytest.mark.usefixtures("service_stops")
@pytest.mark.parametrize(("page", "lines"), runnable(), ids=[page for page, _ in runnable()])
def test_the_commands_of_a_page_work(
    page: str, lines: list[str], stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stand_ins)
    write_rows(Path("pairs.jsonl"), ROWS)  # which another page may have written
    for line in lines:
        assert line.startswith("biencoder "), f"{page}: no test can run `{line}`; say why above the block"
        assert run_small(line) == 0, f"{page}: {line}"
