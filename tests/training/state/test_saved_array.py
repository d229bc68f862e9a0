"""Arrays that a resumed run finds again."""

from pathlib import Path

import numpy as np
import pytest

from biencoder.errors import UserError
from biencoder.training.state.saved_array import Places, saved_array

PLACES = np.array([3, -1, 2])


def never() -> Places:
    raise AssertionError("made again")


def test_an_array_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "places.npy"
    assert np.array_equal(saved_array(path, (3,), lambda: PLACES, may_make=True), PLACES)
    assert np.array_equal(saved_array(path, (3,), never, may_make=True), PLACES)
    assert np.array_equal(saved_array(path, (3,), never, may_make=False), PLACES)


def test_one_that_is_gone_is_not_made_by_another_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"places\.npy: is missing"):
        saved_array(tmp_path / "places.npy", (3,), never, may_make=False)


@pytest.mark.parametrize("damage", [b"", b"no array", PLACES.tobytes()])
def test_one_that_is_damaged_is_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "places.npy"
    path.write_bytes(damage)
    with pytest.raises(UserError, match=r"places\.npy: is damaged"):
        saved_array(path, (3,), never, may_make=True)


def test_one_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "places.npy"
    saved_array(path, (3,), lambda: PLACES, may_make=True)
    with pytest.raises(UserError, match="is damaged"):
        saved_array(path, (4,), never, may_make=True)


@pytest.mark.parametrize("where", [0, 70, 130, -33, -1])
def test_a_single_flipped_bit_is_found(tmp_path: Path, where: int) -> None:
    path = tmp_path / "places.npy"
    saved_array(path, (3,), lambda: PLACES, may_make=True)
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"places\.npy: is damaged"):
        saved_array(path, (3,), never, may_make=True)


def test_other_tools_read_the_array(tmp_path: Path) -> None:
    path = tmp_path / "places.npy"
    saved_array(path, (3,), lambda: PLACES, may_make=True)
    assert np.array_equal(np.load(path), PLACES)
