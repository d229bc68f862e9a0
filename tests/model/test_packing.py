"""Texts to packed rows of bounded size."""

import random
from typing import Any

import pytest
import torch
from tiny import random_texts, tiny_tokenizer

from biencoder.model.packing import chunks, pack
from biencoder.model.tokens import TEXTS_AT_ONCE, Tokens, tokenize


def as_lists(tokens: list[Tokens]) -> list[list[int]]:
    return [text.tolist() for text in tokens]


def test_a_packed_row_is_the_texts_end_to_end() -> None:
    batch = pack([[2, 7, 3], [2, 3], [9]])
    assert batch.input_ids.tolist() == [2, 7, 3, 2, 3, 9]
    assert batch.input_ids.dtype == torch.int64
    assert batch.lengths == (3, 2, 1)
    assert batch.to(torch.device("cpu")) is batch


@pytest.mark.parametrize("max_tokens", [1, 10, 50, 10_000])
def test_chunks_hold_every_text_once_within_the_budget(max_tokens: int) -> None:
    draw = random.Random(0)
    sequences = [[draw.randrange(99) for _ in range(draw.randint(1, 30))] for _ in range(200)]
    seen = []
    lengths: list[int] = []
    for chunk in chunks(sequences, max_tokens):
        assert chunk.tokens == sum(chunk.batch.lengths)
        assert chunk.tokens <= max_tokens or len(chunk.index) == 1
        parts = chunk.batch.input_ids.split(list(chunk.batch.lengths))
        assert [part.tolist() for part in parts] == [sequences[i] for i in chunk.index.tolist()]
        seen += chunk.index.tolist()
        lengths += chunk.batch.lengths
    assert sorted(seen) == list(range(200))
    assert lengths == sorted(lengths, reverse=True)  # equal lengths are neighbours


def test_chunks_are_filled() -> None:
    tokens = [chunk.tokens for chunk in chunks([[1] * 10] * 25, 100)]
    assert tokens == [100, 100, 50]
    assert list(chunks([], 100)) == []


def test_tokenize_cuts_and_keeps_special_tokens() -> None:
    tokenizer = tiny_tokenizer()
    assert as_lists(tokenize(tokenizer, ["word0 word1 word2", "nonesuch"], 4)) == [[2, 4, 5, 3], [2, 1, 3]]
    assert tokenize(tokenizer, [], 4) == []
    assert as_lists(tokenize(tokenizer, [""], 4)) == [[2, 3]]


def test_texts_are_tokenised_a_few_at_a_time_and_all_of_them() -> None:
    texts = [f"word{number % 20}" for number in range(2 * TEXTS_AT_ONCE + 3)]
    whole = as_lists(tokenize(tiny_tokenizer(), texts, 4))
    assert whole == [as_lists(tokenize(tiny_tokenizer(), [text], 4))[0] for text in texts[:20]] * 25 + whole[500:]
    assert len(whole) == len(texts)


def test_a_text_without_any_token_becomes_one() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None  # no special tokens, as Qwen's and Llama's
    assert as_lists(tokenize(tokenizer, ["", "word0"], 4)) == [[0], [4]]
    tokenizer.eos_token = "[SEP]"
    assert as_lists(tokenize(tokenizer, [""], 4)) == [[3]]


def test_of_a_huge_text_only_the_beginning_is_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    seen: list[int] = []
    call = type(tokenizer).__call__

    def counted(self: Any, texts: list[str], **more: Any) -> Any:
        seen.extend(map(len, texts))
        return call(self, texts, **more)

    words = " ".join(random_texts(1, longest=9) * 200_000)
    wanted = tokenize(tokenizer, [words[:2000]], 8)[0].tolist()
    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    assert tokenize(tokenizer, [words], 8)[0].tolist() == wanted
    assert seen == [8000]


@pytest.mark.parametrize("spare", [0, 1, 3, 4, 11])
def test_a_row_that_goes_on_is_cut_into_further_texts_that_are_no_longer(spare: int) -> None:
    packing = pack([[2, 7, 3], [2, 3], [9]]).packing
    starts = packing.starts_up_to(6 + spare)
    assert starts.dtype == torch.int32
    assert starts[:4].tolist() == [0, 3, 5, 6]
    assert starts[-1] == 6 + spare
    assert all(0 < length <= 3 for length in starts.diff().tolist())
    assert packing.starts_up_to(6 + spare) is starts
