import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from language_model import BREAK, STALL, BagOfWords, LanguageModel, Reply, says
from tiny import tiny_model

from biencoder.cli import main
from biencoder.data.table import ExampleTable
from biencoder.pairs.asking import endpoint, generate

KEY = "sk-very-secret-0123456789"
ANIMALS = ("cat", "dog", "horse", "cow", "pig", "hen", "duck", "goose", "owl", "fox", "wolf", "bear", "deer", "hare",
           "mouse", "rat", "bat", "seal")  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file of documents about one animal each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(endpoint, "BACKOFF", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rows = [{"title": f"About the {name}", "text": f"This {name} lives in the barn. The {name} eats when it wants. "
             f"Every {name} that we met was glad to see us come."} for name in ANIMALS]  # fmt: skip
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model knows the animals' names and nothing else."""
    monkeypatch.setattr("biencoder.model.encoder.Encoder.load", lambda *_, **__: BagOfWords(" ".join(ANIMALS)))
    monkeypatch.setattr("biencoder.commands.data.check.load_tokenizer", lambda *_, **__: None)
    monkeypatch.setattr("biencoder.commands.data.check.token_counter", lambda _: None)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def animal(content: str) -> str:
    """Which animal a prompt is about."""
    return content.partition("About the ")[2].split()[0]


def asks(content: str, *_: int) -> Reply:
    return says(f"1. Where does the {animal(content)} live?\n2. What was the {animal(content)} glad of?")


def generating(url: str, *more: str) -> list[str]:
    return ["pairs", "--documents", "documents.jsonl", "--output", "out.jsonl", "--generator", url, "--generator-model",
            "m", "--model", "base", *more]  # fmt: skip


def files(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


def test_documents_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs", "--documents", "documents.jsonl", "--output", "new/out.jsonl"]) == 0
    rows = rows_of(place / "new" / "out.jsonl")
    assert {row["method"] for row in rows} == {"title", "first-sentence", "spans"}
    assert rows[0] == {
        "query": "About the cat", "neg": [], "method": "title",
        "pos": [
            "This cat lives in the barn. The cat eats when it wants. Every cat that we met was glad to see us come."
        ],
    }  # fmt: skip
    table = ExampleTable.from_files([place / "new" / "out.jsonl"])
    assert len(table) == len(rows)
    assert (table[0].query, table[0].negatives) == ("About the cat", ())
    out = capsys.readouterr().out
    counts = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:4]}
    assert counts["title"] == counts["first-sentence"] == ["18", "0", "0", "18"]
    found, repeated, common, kept = map(int, counts["spans"])
    assert (found, common, kept + 36) == (18, 0, len(rows))
    assert 0 < repeated == 18 - kept  # where the sentence drawn was the first
    assert "nothing wrong was found" in out
    assert out.count("\n  -> ") == 3
    assert out.endswith(
        f"{len(rows)} pairs of 18 documents. Train on them:\n"
        "  biencoder train --model BAAI/bge-small-en-v1.5 --train-data new/out.jsonl --output-dir my-model\n"
    )


def test_common_queries_and_repeats_are_dropped_and_the_rest_does_not_change(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def page(number: int) -> str:
        text = f"Text number {number} says what text number {number} has to say and no more."
        return f"# Page {number}\n\n## Introduction\n{text}\n\n## Only {number}\n{text} It goes on."

    folder = place / "manual"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.md").write_text(page(number))
    command = ["pairs", "--documents", "manual", "--output", "out.jsonl", "--max-same-query"]
    assert main([*command, "4"]) == 0
    before = rows_of(place / "out.jsonl")
    assert sum(row["query"] == "Introduction" for row in before) == 4
    capsys.readouterr()
    (folder / "copy.md").write_text(page(0).replace("says", "Says  "))  # the same but for case and white space
    assert main([*command, "3"]) == 0
    after = rows_of(place / "out.jsonl")
    assert after == [row for row in before if row["query"] != "Introduction"] or {
        json.dumps(row).lower() for row in after
    }
    out = capsys.readouterr().out
    assert "queries that too many documents share, for example: Introduction" in out
    assert len(after) == len(before) - 4 > 0


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("Short.", [], "4 documents gave no pair by title, first-sentence, spans, headings; a document"),
        ("Short.", ["--methods", "title"], "4 documents gave no pair by title; a document"),
        (
            "The same sentence stands first. Then comes text number {number}, which is ten words long or more.",
            ["--methods", "first-sentence"],
            "none of 4 pairs is left: 0 repeat another, 4 have a query that too many documents share; raise "
            "--max-same-query",
        ),
    ],
)
def test_documents_that_yield_nothing(
    text: str, flags: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "a.txt").write_text("".join(text.format(number=number) + "\n" for number in range(4)))
    assert main(["pairs", "--documents", "a.txt", "--output", "out.jsonl", *flags]) == 2
    out, err = capsys.readouterr()
    assert message in err.splitlines()[-1]
    assert out == ""
    assert files(place) == {"documents.jsonl", "a.txt"}


def test_methods_and_seed(place: Path) -> None:
    command = ["pairs", "--documents", "documents.jsonl", "--output", "out.jsonl", "--methods", "spans", "title"]
    written = []
    for seed in ("1", "1", "2"):
        assert main([*command, "--seed", seed]) == 0
        written.append((place / "out.jsonl").read_bytes())
    assert {row["method"] for row in rows_of(place / "out.jsonl")} == {"spans", "title"}
    assert written[0] == written[1] != written[2]


@pytest.mark.usefixtures("words")
def test_questions_by_a_language_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first_four = threading.Barrier(4)

    def answer(content: str, _: int) -> Reply:
        if animal(content) in ANIMALS[:4]:
            first_four.wait(10)
        return asks(content)

    with LanguageModel(answer) as server:
        assert main(generating(server.url, "--concurrency", "4", "--round-trip-k", "1")) == 0
    assert set(server.calls.values()) == {1}
    assert len(server.calls) == len(ANIMALS)
    assert server.most_at_once == 4
    rows = rows_of(place / "out.jsonl")
    assert [row["query"] for row in rows] == [
        question for name in ANIMALS for question in (f"Where does the {name} live?", f"What was the {name} glad of?")
    ]
    assert rows[0]["pos"][0].startswith("About the cat This cat lives in the barn.")
    assert rows[0]["method"] == "question"
    sent = sum(map(len, server.calls))
    out, err = capsys.readouterr()
    assert out.startswith(f"18 calls to m at {server.url}, {sent:,} characters in all; 4 at a time\n")
    assert "biencoder train --model base --train-data out.jsonl" in out
    assert files(place) == {"documents.jsonl", "out.jsonl"}
    assert KEY not in out + err + (place / "out.jsonl").read_text()
    assert set(server.keys) == {f"Bearer {KEY}"}


@pytest.mark.usefixtures("words")
def test_every_kind_of_trouble_at_once_changes_nothing_in_what_is_written(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(3)
    lock = threading.Lock()

    def answer(content: str, times: int) -> Reply:
        if animal(content) == "cat":
            return Reply(b"<html>")
        if animal(content) == "dog":
            return Reply(b"too long", 400)
        if animal(content) == "cow":
            return says("Sorry!")
        with lock:
            trouble = draw.choice([Reply(status=500), Reply(status=429, headers={"Retry-After": "0"}),
                                   Reply(trouble=BREAK), Reply(trouble=STALL)])  # fmt: skip
        return asks(content) if times else trouble

    with LanguageModel(answer) as server:
        assert main(generating(server.url, "--request-timeout", "0.5")) == 0
    names = [name for name in ANIMALS if name not in ("cat", "dog", "cow")]
    assert [animal(row["pos"][0]) for row in rows_of(place / "out.jsonl")] == [n for n in names for _ in range(2)]
    out = capsys.readouterr().out
    assert "answers that were not used: " in out
    assert all(kind in out for kind in ("1 not JSON", "1 refused with 400", "1 no question"))


@pytest.mark.usefixtures("words")
def test_a_question_that_does_not_find_its_passage_is_left_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(content: str, _: int) -> Reply:
        other = "horse" if animal(content) == "owl" else animal(content)
        return says(f"Where does the {other} live?\nWhat was the {animal(content)} glad of?")

    with LanguageModel(answer) as server:
        assert main(generating(server.url, "--round-trip-k", "1")) == 0
    rows = rows_of(place / "out.jsonl")
    assert len(rows) == 2 * len(ANIMALS) - 1
    assert [row["query"] for row in rows if animal(row["pos"][0]) == "owl"] == ["What was the owl glad of?"]
    assert "passage not in the top 1" in capsys.readouterr().out


def test_the_real_model_filters_as_well(place: Path, minilm: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {
        "router": "Hold the button on the back of the router for ten seconds to reset it.",
        "heart": "Potassium keeps the beat of the heart steady, and healthy kidneys keep it at the right level.",
        "cake": "Mix sugar, butter and flour, and bake the cake in the oven for forty minutes.",
    }
    (place / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts.values()))
    questions = {"router": "How do I restart my modem?", "heart": "Which mineral matters for cardiac rhythm?",
                 "cake": "Which mineral do the kidneys regulate?"}  # fmt: skip

    def answer(content: str, _: int) -> Reply:
        return says(next(questions[name] for name, text in texts.items() if text in content))

    with LanguageModel(answer) as server:
        assert main(generating(server.url, "--model", minilm, "--round-trip-k", "1")) == 0
    assert [row["query"] for row in rows_of(place / "out.jsonl")] == [questions["router"], questions["heart"]]
    assert "queries cut at 64 tokens" in capsys.readouterr().out


@pytest.mark.usefixtures("place", "words")
def test_max_calls_takes_a_sample_to_which_more_calls_only_add() -> None:
    taken: list[set[str]] = []
    for number, most in enumerate(("5", "9")):
        with LanguageModel(asks) as server:
            assert main(generating(server.url, "--output", f"{number}.jsonl", "--max-calls", most)) == 0
        taken.append({animal(content) for content in server.calls})
    assert [len(names) for names in taken] == [5, 9]
    assert taken[0] < taken[1]
    assert taken[0] != set(ANIMALS[:5])


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(f"wrong key {KEY}".encode(), 401), "401 Unauthorized: wrong key ***; biencoder reads the API key from"),
        (Reply(status=404), "404 Not Found; the address usually ends in /v1"),
        (Reply(trouble=BREAK), "no answer in 6 attempts"),
        (Reply(b"refused", 400), "no question came back (18 refused with 400)"),
        (says("Sure!"), "no question came back (18 no question)"),
    ],
    ids=["401", "404", "break", "400", "nonsense"],
)
def test_an_endpoint_that_is_of_no_use(
    reply: Reply, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LanguageModel(lambda *_: reply) as server:
        assert main(generating(server.url, "--concurrency", "2")) == 2
    err = capsys.readouterr().err
    (line,) = (line for line in err.splitlines() if line.startswith("biencoder: error"))
    assert f"--generator {server.url}: {message}" in line
    assert KEY not in err
    assert files(place) - {"out.jsonl.journal"} == {"documents.jsonl"}
    assert ("out.jsonl.journal" in files(place)) == (reply.status == 200 and not reply.trouble)


@pytest.mark.usefixtures("words")
def test_nonsense_from_the_first_answer_on_ends_the_run_early(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "HOPELESS", 4)
    with LanguageModel(lambda *_: says("I cannot:")) as server:
        assert main(generating(server.url, "--concurrency", "1")) == 2
    assert len(server.calls) == 4
    assert "none of 4 answers can be used (4 no question); the last: I cannot:" in capsys.readouterr().err
    assert not (place / "out.jsonl").exists()


@pytest.mark.usefixtures("words")
def test_a_run_that_failed_goes_on_and_what_changed_is_asked_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LanguageModel(lambda c, _: Reply(status=401) if animal(c) == "owl" else asks(c)) as server:
        assert main(generating(server.url, "--concurrency", "1")) == 2
    assert "8 answers are safe in out.jsonl.journal; type the same command again to continue" in capsys.readouterr().err
    lines = (place / "documents.jsonl").read_text().splitlines()
    (place / "documents.jsonl").write_text("\n".join([lines[0].replace("glad", "happy"), *lines[1:]]))
    with LanguageModel(asks) as server:
        assert main(generating(server.url)) == 0
    assert {animal(content) for content in server.calls} == {"cat", *ANIMALS[8:]}
    out = capsys.readouterr().out
    assert "7 answers are already in out.jsonl.journal, from an earlier run" in out
    assert "1 other answers in it belong to another prompt, model or text; they are not used" in out
    assert len(rows_of(place / "out.jsonl")) == 2 * len(ANIMALS)
    assert files(place) == {"documents.jsonl", "out.jsonl"}
    with LanguageModel(asks) as server:
        assert main(generating(server.url)) == 2  # the output is there: nothing is paid for again
    assert not server.calls


def test_a_killed_run_makes_no_call_twice(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(place / "base")
    process: list[subprocess.Popen[bytes]] = []
    kill: Callable[[], None] = lambda: process[0].send_signal(signal.SIGKILL)  # noqa: E731
    answered: list[str] = []

    def answer(content: str, _: int) -> Reply:
        if len(answered) == 7 and process:
            kill()
            process[0].wait()
            return Reply(trouble=BREAK)
        answered.append(content)
        return asks(content)

    with LanguageModel(answer) as server:
        command = generating(server.url, "--concurrency", "1", "--round-trip-k", "18")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process.append(subprocess.Popen([sys.executable, "-m", "biencoder", *command], env=environment))
        assert process[0].wait() == -signal.SIGKILL
        assert files(place) == {"documents.jsonl", "base", "out.jsonl.journal"}
        assert KEY not in (place / "out.jsonl.journal").read_text()
        process.clear()
        assert main(command) == 0
    assert sorted(answered) == sorted(set(answered))
    assert len(answered) == len(ANIMALS)
    assert files(place) == {"documents.jsonl", "base", "out.jsonl"}
    assert len(rows_of(place / "out.jsonl")) == 2 * len(ANIMALS)
    assert "7 answers are already in" in capsys.readouterr().out


def test_a_generator_without_its_extra_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "httpx2" else found(name, *more)
    )
    (tmp_path / "documents.txt").write_text("A document of a few words. It has two sentences.\n")
    words = ["--documents", str(tmp_path / "documents.txt"), "--output", str(tmp_path / "pairs.jsonl")]
    asked = ["--generator", "http://localhost:1/v1", "--generator-model", "m", "--model", "m"]
    assert main(["pairs", *words, *asked]) == 2
    assert capsys.readouterr().err == (
        "biencoder: error: --generator needs the package httpx2, which is not installed; "
        "type: pip install biencoder[pairs]\n"
    )
    assert not (tmp_path / "pairs.jsonl").exists()
