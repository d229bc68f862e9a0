"""One wording for the terminal, the model card and the page."""

import shlex

from biencoder.report.wording import best_step_said, search_command, skipped_said


def test_a_folder_with_a_space_is_one_word_for_the_shell() -> None:
    assert shlex.split(search_command("my models/out"))[:4] == ["biencoder", "search", "--model", "my models/out"]


def test_nothing_is_said_about_a_run_that_went_as_planned() -> None:
    assert best_step_said(10, 10) == skipped_said(0, 0, 10) == []
    assert len(skipped_said(2, 3, 1000)) == 2
    assert "from step 5 of 1,000" in best_step_said(5, 1000)[0]
