# ruff: noqa: RUF001  (punctuation of other scripts is meant)
import pytest

from biencoder.pairs.sentences import Section, count_words, cut, plain, sections, sentences


def split(text: str) -> list[str]:
    return [text[s.start : s.end] for s in sentences(text)]


@pytest.mark.parametrize(
    "expected",
    [
        ["It works.", "Does it?", "Yes!", "Well… Maybe."][:3],
        ['He said "stop."', "Then he left."],
        ["Dr. Smith met Mrs. Jones vs. the U.S. team.", "They won 3.5 to 2."],
        ["See fig. two, e.g. the left one.", "It is from NASA.", "Founded in 1958.", "It flies."],
        ["J. K. Rowling wrote it.", "Vgl. dazu Nr. 7 bzw. acht.", "Ende."],
        ["今日は晴れです。", "明日は？", "「雨でしょう。」", "そうですか！"],
        ["यह एक वाक्य है।", "यह दूसरा है।"],
        ["هل هذا سؤال؟", "نعم."],
        ["1. First step.", "2. Second step."],
        ["no mark at the end"],
    ],
    ids=lambda expected: expected[0],
)
def test_sentences(expected: list[str]) -> None:
    joiner = "" if "。" in expected[0] else "\n" if expected[0].startswith("1.") else " "
    assert split(joiner.join(expected)) == expected


def test_paragraphs_and_lists_end_sentences_and_a_line_break_does_not() -> None:
    text = "A line that\nwraps\n\nNext paragraph\n- an item\n- another\n2) the last"
    assert split(text) == ["A line that\nwraps", "Next paragraph", "- an item", "- another", "2) the last"]


MARKDOWN = """Intro text.

## Install *fast* {#install}
Run it. Then wait.
```sh
# no heading. Not a sentence.
```
| a | b |
| - | - |
More.

Under
-----
Deep text.

### Empty
### [Links](http://x) and `code` ##
end
"""


def test_headings_code_and_tables_are_no_prose() -> None:
    found = [(MARKDOWN[s.start : s.end], s.is_prose) for s in sentences(MARKDOWN)]
    assert [text for text, is_prose in found if is_prose] == [
        "Intro text.", "Run it.", "Then wait.", "More.", "Deep text.", "end",
    ]  # fmt: skip
    assert "```sh\n# no heading. Not a sentence.\n```" in [text for text, is_prose in found if not is_prose]
    assert "| a | b |\n| - | - |" in [text for text, is_prose in found if not is_prose]


def test_sections() -> None:
    found = list(sections(MARKDOWN))
    assert [section.heading for section in found] == ["Install *fast*", "Under", "Empty", "Links and code"]
    assert found[0].body.startswith("Run it.")
    assert found[0].body.endswith("More.")
    assert found[1:] == [Section("Under", "Deep text."), Section("Empty", ""), Section("Links and code", "end")]


def test_an_open_fence_runs_to_the_end() -> None:
    assert list(sections("# a\n~~~\n# b\ntext")) == [Section("a", "~~~\n# b\ntext")]


def test_no_character_but_white_space_is_lost() -> None:
    text = MARKDOWN + "今日は晴れ。Dr. No said (yes.) Right?!"
    assert "".join("".join(split(text)).split()) == "".join(text.split())


def test_words_are_counted_and_cut_in_scripts_with_and_without_spaces() -> None:
    assert count_words("two words") == 2
    assert count_words("") == 0
    assert count_words("日本語 text") == 4
    assert cut("one  two, three", 2) == "one  two,"
    assert cut("日本語です", 3) == "日本語"
    assert cut("one", 5) == "one"


def test_plain() -> None:
    assert plain("- **Bold** [a link](x.md),\n  ![image](y.png)`code` and __init__") == (
        "Bold a link, code and __init__"
    )
