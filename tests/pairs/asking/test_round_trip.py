import numpy as np
import pytest
from language_model import BagOfWords

from biencoder.errors import UserError
from biencoder.pairs.asking import round_trip as module
from biencoder.pairs.asking.round_trip import round_trip

WORDS = "router reset button potassium heart cake sugar oven"
PASSAGES = ["The router has a reset button", "Potassium and the heart", "Sugar in the oven makes a cake", "Cake"]


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_a_question_is_kept_when_its_own_passage_is_found(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", batch)
    questions = [("reset the router?", 0), ("what does the heart need?", 0), ("cake?", 3), ("cake?", 2), ("oven?", 2)]
    done: list[int] = []
    found = [
        round_trip(BagOfWords(WORDS), iter(PASSAGES), iter(questions), k, done.append).tolist() for k in (1, 2, 10)
    ]
    assert found == [[True, False, True, False, True], [True, True, True, True, True], [True] * 5]
    assert done[:9] == list(range(1, 10))


def test_nothing_to_ask() -> None:
    assert round_trip(BagOfWords(WORDS), PASSAGES, [], 1).tolist() == []


def test_vectors_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = BagOfWords(WORDS)
    monkeypatch.setattr(encoder, "represent_passages", lambda texts, _: np.full((len(texts), 8), np.nan, np.float32))
    with pytest.raises(UserError, match="passage 1: the vector has values that are not finite"):
        round_trip(encoder, PASSAGES, [("x", 0)], 1)
