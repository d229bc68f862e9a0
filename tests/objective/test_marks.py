import numpy as np
import torch

from biencoder.objective.marks import Marks

TABLE = np.random.default_rng(0).random((9, 7)) < 0.2


def marks() -> Marks:
    rows, columns = np.nonzero(TABLE)
    shuffled = np.random.default_rng(1).permutation(len(rows))
    return Marks.of(rows[shuffled], columns[shuffled], (9, 7))


def test_parts_in_full_are_those_of_the_table() -> None:
    for part in (slice(0, 9), slice(2, 5), slice(8, 20), slice(4, 4), slice(None)):
        assert marks().dense(part).numpy().tolist() == TABLE[part].tolist()
    assert len(marks()) == TABLE.sum()


def test_they_move_to_a_device() -> None:
    moved = marks().to(torch.device("meta"))
    assert moved.dense(slice(1, 3)).is_meta
    assert moved.dense(slice(1, 3)).shape == (2, 7)
