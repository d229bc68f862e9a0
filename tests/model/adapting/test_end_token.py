"""The end-of-sequence token stands after every text, also a cut one, for whoever loads the tokenizer."""

from pathlib import Path

import pytest
from tiny import WORDS, language_model, tiny_tokenizer
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from biencoder.model.adapting.end_token import close_texts, is_closed
from biencoder.model.tokens import tokenize

BEGIN, END = 2, 3
LONG = " ".join(WORDS)


@pytest.mark.parametrize(("kind", "before"), [("qwen3", []), ("llama", [BEGIN])])
def test_it_is_added_kept_under_truncation_and_saved(kind: str, before: list[int], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_model(tmp_path / "base", kind))
    word1, word2 = tokenizer.convert_tokens_to_ids(["word1", "word2"])
    assert not is_closed(tokenizer)
    assert close_texts(tokenizer)
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert each("word1 word2")["input_ids"] == [*before, word1, word2, END]
        assert each("")["input_ids"] == [*before, END]
        assert each("word1", add_special_tokens=False)["input_ids"] == [word1]
        assert [list(ids) for ids in tokenize(each, ["word1 word2", LONG], 3)] == [
            [*before, word1, END] if before else [word1, word2, END],
            [*before, *range(4, 4 + 2 - len(before)), END],
        ]
        assert len(each(LONG, truncation=True, max_length=10)["input_ids"]) == 10
    assert close_texts(tokenizer)  # a second time changes nothing
    assert tokenizer("word1")["input_ids"].count(END) == 1


def test_what_ends_a_text_already_stays() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "word7"
    assert close_texts(tokenizer)
    assert tokenizer("word1")["input_ids"][-1] == END


@pytest.mark.parametrize(
    "present",
    [
        None,
        processors.ByteLevel(),
        processors.Sequence([processors.ByteLevel()]),
        processors.TemplateProcessing(single="b b $A", special_tokens=[("b", 1)]),
        processors.Sequence(
            [processors.ByteLevel(), processors.TemplateProcessing(single="b $A", special_tokens=[("b", 1)])]
        ),
    ],
)
def test_every_post_processor_of_language_models(present: processors.PostProcessor | None) -> None:
    backend = Tokenizer(WordLevel({"a": 0, "b": 1, "</s>": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if present is not None:
        backend.post_processor = present
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    before = tokenizer("a a")["input_ids"]
    assert close_texts(tokenizer)
    assert tokenizer("a a")["input_ids"] == [*before, 2]
    assert tokenizer("a a", "a")["input_ids"][-1] == 2


def test_a_tokenizer_without_such_a_token_is_left_alone() -> None:
    backend = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert not close_texts(tokenizer)
    assert tokenizer("a")["input_ids"] == [0]
