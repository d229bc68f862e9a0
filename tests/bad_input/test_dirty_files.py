"""Every bad file of ``cases`` with every command that reads such files."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cases import CORPUS, QRELS, ROWS, TEXTS, YAML, Cases
from command_lines import check_refused, with_flag


@dataclass(frozen=True)
class Case:
    """A file, written where ``path`` says; a command that reads it; what it says of it."""

    path: str
    content: bytes
    words: list[str]
    message: str


def of(cases: Cases, command: str, flag: str, path: str = "", value: str = "") -> Iterator[object]:
    """A case a file: written to ``path``, or under its own name, of which the message speaks."""
    for name, (content, message) in cases.items():
        words = with_flag(command, flag, value or path or name)
        if flag == "--queries":
            words = [word for word in words if word not in ("--query", "word1")]
        said = message if path else f"{name}{message if message[0] == ':' else ''}"
        yield pytest.param(Case(path or name, content, words, said), message, id=f"{command} {flag} {name}")


ALL = [
    *(case for command in ("train", "mine", "score", "check") for case in of(ROWS, command, "--train-data")),
    *of(TEXTS, "encode", "--input"),
    *of(TEXTS, "search", "--corpus"),
    *of(TEXTS, "search", "--queries"),
    *of(TEXTS, "mine", "--corpus"),
    *of({name: case for name, case in TEXTS.items() if name != "id.jsonl"}, "pairs", "--documents"),
    *(
        case
        for command, flag in (("train", "--eval-data"), ("evaluate", "--data"), ("check", "--eval-data"))
        for name, cases in (("corpus.jsonl", CORPUS), ("qrels/test.tsv", QRELS))
        for case in of(cases, command, flag, f"beir/{name}", "beir")
    ),
    *of(YAML, "train", "--config", "bad.yaml"),
]


@pytest.fixture(scope="module")
def workplace(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all cases, for none may leave anything behind; beside it the folder for temporary files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(template)
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))
        yield template


@pytest.mark.parametrize(("case", "message"), ALL)
def test_a_bad_file_is_one_message_with_file_and_line(
    case: Case, message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workplace / case.path
    kept = path.read_bytes() if path.exists() else None
    path.write_bytes(case.content)
    try:
        check_refused(workplace, case.words, (case.message, message), capsys)
        assert not any(Path(tempfile.gettempdir()).iterdir())
    finally:
        path.unlink() if kept is None else path.write_bytes(kept)


def test_there_are_enough_of_them() -> None:
    assert len(ALL) >= 150
