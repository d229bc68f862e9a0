from pathlib import Path

import pytest

from biencoder.errors import UserError
from biencoder.pairs.asking.journal import Answer, Journal, digest


def test_answers_outlive_the_run_and_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl.journal"
    with Journal(path) as journal:
        journal.add("a", Answer("one\ntwo\u2028"))
        journal.add("b", Answer("", "not JSON"))
        assert journal["a"] == Answer("one\ntwo\u2028")
    with path.open("ab") as file:
        file.write(b'{"key": "c", "te')
    with Journal(path) as journal:
        assert len(journal) == 2
        assert "c" not in journal
        journal.add("c", Answer("three"))
        assert [journal[key] for key in "cba"] == [Answer("three"), Answer("", "not JSON"), Answer("one\ntwo\u2028")]
    with Journal(path) as journal:
        assert journal["c"] == Answer("three")
        journal.remove()
    assert not path.exists()


def test_one_without_answers_is_not_left_behind(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_and_other_files_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.add("a", Answer("x"))
        with pytest.raises(UserError, match="another run is writing to it"):
            Journal(tmp_path / "j")
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(UserError, match="text:1: is not an answer of a language model"):
        Journal(tmp_path / "text")
    assert (tmp_path / "text").read_text() == "hello\n"


def test_an_answer_is_known_by_all_that_was_sent() -> None:
    assert len({digest("m", "x"), digest("n", "x"), digest("m", "y"), digest("m", "x")}) == 3
