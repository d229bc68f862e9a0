# ruff: noqa: RUF001  (punctuation of other scripts is meant)
from pathlib import Path

import pytest

from biencoder.errors import UserError
from biencoder.pairs.asking.questions import fill, load_prompt, parse

PASSAGE = "Hold the button on the back for ten seconds. Is the light red?"


@pytest.mark.parametrize(
    ("answer", "questions"),
    [
        ("How do I reset the router?", ["How do I reset the router?"]),
        ("1. How do I reset it?\n2) What does the button do?", ["How do I reset it?", "What does the button do?"]),
        ('Here are two:\n\n- **How do I reset it?**\n* "What is it?"', ["How do I reset it?", "What is it?"]),
        ("Question 1: How do I reset it?", ["How do I reset it?"]),
        ("<think>The user\nwants this?</think>\nHow do I reset it?", ["How do I reset it?"]),
        ("<think>I never come to an end?", []),
        ("ルーターはどうリセットしますか？", ["ルーターはどうリセットしますか？"]),
        ("router reset button hold time", ["router reset button hold time"]),  # a prompt may ask for keywords
        ("How do I reset it?\nhow do I  reset it?\nWhy is it so slow?", ["How do I reset it?", "Why is it so slow?"]),
        ("Sure!", []),
        ("Here are the questions:", []),
        ("", []),
        ("?", []),
        (PASSAGE, []),
        ("Is the light red?", []),  # stands in the passage
        ("What? " * 80, []),
        ("{[(<|>)]} ?? --", []),
    ],
)
def test_what_counts_as_a_question(answer: str, questions: list[str]) -> None:
    assert parse(answer, PASSAGE, 5) == questions


def test_no_more_than_asked_for() -> None:
    answer = "\n".join(f"What is number {i}?" for i in range(9))
    assert parse(answer, PASSAGE, 2) == ["What is number 0?", "What is number 1?"]


def test_the_prompt_that_comes_with_it_and_one_of_ones_own(tmp_path: Path) -> None:
    assert "{passage}" in load_prompt(None)
    path = tmp_path / "prompt.txt"
    path.write_text('\ufeffAs JSON {"a": 1}, {1}: {passage}\n', encoding="utf-8")
    filled = fill(load_prompt(path), "with {passage} and {braces}", 3)
    assert filled.startswith('As JSON {"a": 1}, {1}: with {passage} and {braces}\n\n')
    assert "3 lines" in filled


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no placeholder", "must appear once, not 0 times"),
        (b"{passage} {passage}", "must appear once, not 2 times"),
        (b"{passage} {language}", r"unknown placeholder \{language\}"),
        (b"\xff{passage}", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_prompt_that_cannot_be_used(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_prompt(path)
