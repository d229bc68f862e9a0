"""Token ids are those that the tokenizer gives when it is called, for every way in which it can be set up."""

from pathlib import Path

import pytest
from tiny import language_model, random_texts, tiny_model, tiny_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from biencoder.model.tokens import TEXTS_AT_ONCE, tokenize

TEXTS = ["", "word1", "[SEP] word2 [CLS]", "<mask> ünknown\t\n", *random_texts(TEXTS_AT_ONCE + 9, longest=30)]


def changed(name: str) -> PreTrainedTokenizerBase:
    tokenizer = tiny_tokenizer()
    if name == "cut at the left":
        tokenizer.truncation_side = "left"
    if name == "special tokens are text":
        tokenizer.split_special_tokens = True
    if name == "used before":
        tokenizer(["word1 word2", "word1"], padding=True, truncation=True, max_length=3)
    return tokenizer


@pytest.mark.parametrize("name", ["as it is", "cut at the left", "special tokens are text", "used before"])
@pytest.mark.parametrize("max_length", [5, 24, 1000])
def test_ids_are_those_of_a_call(name: str, max_length: int) -> None:
    wanted = changed(name)(TEXTS, truncation=True, max_length=max_length)["input_ids"]
    assert [ids.tolist() for ids in tokenize(changed(name), TEXTS, max_length)] == wanted


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_ids_of_a_saved_tokenizer(tmp_path: Path, kind: str) -> None:
    folder = (tiny_model if kind == "bert" else language_model)(tmp_path, kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = AutoTokenizer.from_pretrained(folder)(TEXTS[1:], truncation=True, max_length=12)["input_ids"]
    assert [ids.tolist() for ids in tokenize(tokenizer, TEXTS[1:], 12)] == wanted


def test_no_texts_and_a_text_without_tokens(tmp_path: Path) -> None:
    assert tokenize(tiny_tokenizer(), [], 5) == []
    tokenizer = AutoTokenizer.from_pretrained(language_model(tmp_path, "qwen3"))
    assert [len(ids) for ids in tokenize(tokenizer, ["word1", "", "word2 word3"], 5)] == [1, 1, 2]
