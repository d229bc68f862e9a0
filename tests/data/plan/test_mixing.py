import numpy as np
import pytest

from biencoder.data.plan.mixing import Mix, turns_per_epoch


@pytest.mark.parametrize(
    ("mix", "weights", "turns"),
    [
        ("size", [1, 1, 1], [100, 36, 4]),  # every row once
        ("sqrt", [1, 1, 1], [78, 47, 15]),  # of 140: 10, 6 and 2 in 18
        ("equal", [1, 1, 1], [47, 47, 46]),
        ("equal", [2, 1, 1], [70, 35, 35]),
        ("size", [1, 1, 9], [82, 29, 29]),  # 100, 36 and 36 in 172
        ("size", [1, 1, 0.001], [103, 37, 1]),  # less than half a step, and one all the same
    ],
)
def test_shares_of_an_epoch(mix: str, weights: list[float], turns: list[int]) -> None:
    assert turns_per_epoch([100, 36, 4], weights, mix).tolist() == turns


@pytest.mark.parametrize("mix", ["size", "sqrt", "equal"])
def test_a_data_set_without_rows_has_no_turn(mix: str) -> None:
    assert turns_per_epoch([3, 0], [1.0, 5.0], mix).tolist() == [3, 0]
    assert turns_per_epoch([7], [0.1], mix).tolist() == [7]


def test_turns_are_even_and_depend_on_seed_and_step_alone() -> None:
    counts = np.array([60, 25, 4])
    steps = range(3 * 89)
    turns = [Mix(counts, 5).turn(step) for step in steps]
    assert [Mix(counts, 5).turn(step) for step in reversed(steps)] == turns[::-1]
    other = Mix(counts, 6)
    assert [other.turn(step) for step in steps] != turns
    for number, count in enumerate(counts):
        mine = [(step, before) for step, (data_set, before) in enumerate(turns) if data_set == number]
        assert [before for _, before in mine] == list(range(3 * count))  # no batch twice, none left out
        for step, before in mine:
            assert abs(before - step * count / 89) < 1 + 3 * count / 89
    epochs = [[data_set for data_set, _ in turns[start : start + 89]] for start in (0, 89)]
    assert epochs[0] != epochs[1]
    assert [np.bincount(epoch).tolist() for epoch in epochs] == [counts.tolist()] * 2
