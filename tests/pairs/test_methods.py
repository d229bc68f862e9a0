import random

import pytest

from biencoder.config.choices import PAIR_METHODS
from biencoder.data.text import fold
from biencoder.pairs.documents import Document
from biencoder.pairs.methods import METHODS, PASSAGE_LEAST, QUERY_MOST, Pair, pairs_of
from biencoder.pairs.sentences import count_words, plain

ROUTER = Document(
    "Resetting the router",
    """The router forgets its settings when it is reset. Hold the button on the back for ten seconds until it blinks.

## After the reset

The network has its old name again, and the password is the one printed on the label below. Connect to it
and open the start page.

| light | means |
| --- | --- |
| red | no line |

## Notes
Short.
""",
)


def found(document: Document, *methods: str, seed: int = 1, words: int = 200) -> list[Pair]:
    return list(pairs_of(document, methods or tuple(METHODS), seed=seed, passage_words=words))


def documents(count: int) -> list[Document]:
    draw = random.Random(7)

    def sentence(number: int) -> str:
        words = [f"w{draw.randrange(500)}" for _ in range(draw.randint(1, 14))]
        return f"S{number} {' '.join(words)}{draw.choice('.!?')}"

    made = []
    for number in range(count):
        paragraphs = [" ".join(sentence(i) for i in range(draw.randint(0, 6))) for _ in range(draw.randint(0, 5))]
        heads = [draw.choice(["## Part\n", "", f"# Head {number}\n", "* "]) + text for text in paragraphs]
        made.append(Document(draw.choice(["", f"Title {number}", "?!"]), "\n\n".join(heads)))
    return made


def test_the_command_line_knows_the_methods() -> None:
    assert tuple(METHODS) == PAIR_METHODS


def test_title() -> None:
    (pair,) = found(ROUTER, "title")
    assert pair == Pair("Resetting the router", ROUTER.text.strip(), "title")


def test_a_title_repeated_as_the_first_line_is_no_part_of_the_passage() -> None:
    text = "one two three four five six seven eight nine ten eleven"
    (pair,) = found(Document("My title", f"my  TITLE\n{text}"), "title")
    assert pair.passage == text
    (pair,) = found(Document("My title", f"My title is {text}"), "title")
    assert pair.passage == f"My title is {text}"


def test_first_sentence() -> None:
    (pair,) = found(ROUTER, "first-sentence")
    assert pair.query == "The router forgets its settings when it is reset."
    assert pair.passage.startswith("Hold the button")
    assert "| red | no line |" in pair.passage


def test_headings() -> None:
    (pair,) = found(ROUTER, "headings")  # the section under Notes is too short
    assert pair.query == "After the reset"
    assert pair.passage.startswith("The network has")
    assert pair.passage.endswith("| red | no line |")


def test_spans_take_the_sentence_out_of_its_block_in_nine_of_ten() -> None:
    text = " ".join(f"The {name} sentence has a few words of its own." for name in ("first", "second", "third", "last"))
    drawn: dict[str, int] = {}
    kept = 0
    for seed in range(400):
        (pair,) = found(Document("", text), "spans", seed=seed)
        drawn[pair.query] = drawn.get(pair.query, 0) + 1
        rest = pair.passage
        if pair.query in rest:
            kept += 1
            assert rest == text
        else:
            assert count_words(rest) == count_words(text) - count_words(pair.query)
            assert set(rest.split()) | set(pair.query.split()) == set(text.split())
    assert 20 <= kept <= 60  # 40 expected, standard deviation 6
    assert len(drawn) == 4
    assert min(drawn.values()) >= 70  # 100 expected, standard deviation 9


def test_a_long_document_gives_a_span_a_block() -> None:
    text = " ".join(f"Sentence number {number} is about nothing at all." for number in range(40))
    pairs = found(Document("", text), "spans", words=50)
    assert len(pairs) == 7  # blocks of 6 sentences with 8 words each, and one of 4
    assert all(count_words(pair.passage) <= 50 for pair in pairs)


@pytest.mark.parametrize("words", [12, 40, 200])
def test_what_holds_for_every_pair(words: int) -> None:
    pairs = [pair for document in documents(300) for pair in found(document, words=words)]
    assert {pair.method for pair in pairs} == set(METHODS)
    for pair in pairs:
        assert 1 <= count_words(pair.query) <= QUERY_MOST
        assert pair.query == plain(pair.query)
        assert any(map(str.isalpha, pair.query))
        assert PASSAGE_LEAST <= count_words(pair.passage) <= words
        assert pair.passage == pair.passage.strip()
        assert fold(pair.query) != fold(pair.passage)


def test_pairs_depend_on_the_document_and_the_seed_alone() -> None:
    some = documents(40)
    apart = {document.key: found(document) for document in some}
    assert {document.key: found(document) for document in reversed(some)} == apart
    assert {document.key: found(document, seed=2) for document in some} != apart
    for document in some:
        methods = [method for method in METHODS if method != "title"]
        assert found(document, *methods) == [pair for pair in apart[document.key] if pair.method != "title"]


@pytest.mark.parametrize(
    "text", ["", "   ", "# Heading only", "One sentence.", "```\ncode only\n```", "|a|b|\n|c|d|", "????"]
)
def test_documents_with_nothing_in_them(text: str) -> None:
    assert found(Document("", text)) == []


def test_other_scripts() -> None:
    text = "ルーターをリセットすると設定が消えます。背面のボタンを十秒間押し続けてください。点滅したら手を離します。"
    pairs = found(Document("ルーターのリセット", text))
    assert [pair.method for pair in pairs] == ["title", "first-sentence", "spans"]
    assert pairs[1].query == "ルーターをリセットすると設定が消えます。"
