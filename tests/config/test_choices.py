"""Every choice that a person has is implemented, and nothing is implemented that a person cannot choose."""

from collections.abc import Iterable

import pytest

from biencoder.config import choices
from biencoder.data.plan import mixing
from biencoder.model import pooling
from biencoder.model.files import settings
from biencoder.objective import losses
from biencoder.pairs import methods
from biencoder.training import optimizer


@pytest.mark.parametrize(
    ("table", "choice"),
    [
        (pooling.POOLINGS, choices.POOLINGS),
        (losses.DISTILLATIONS, choices.DISTILLATIONS),
        (optimizer.SCHEDULES, choices.SCHEDULES),
        (mixing.MIXES, choices.MIXES),
        (methods.METHODS, choices.PAIR_METHODS),
    ],
    ids=["poolings", "distillations", "schedules", "mixes", "methods"],
)
def test_a_table_has_the_names_that_can_be_chosen_in_their_order(table: Iterable[str], choice: tuple[str, ...]) -> None:
    assert tuple(table) == choice


def test_every_pooling_has_a_name_in_the_files_of_sentence_transformers() -> None:
    assert set(choices.POOLINGS) <= set(settings.POOLING_KEYS.values())
