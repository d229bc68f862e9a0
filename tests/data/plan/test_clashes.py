"""Which rows may share a batch, against the definition: text by text, batch by batch."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from biencoder.data.plan.clashes import Clashes
from biencoder.data.random_bits import shuffle_bits
from biencoder.data.table import Ragged

Rows = list[tuple[int, set[int]]]  # the query of each row, and its positives


def clashes_of(rows: Rows) -> Clashes:
    known = answers_of(rows)
    numbers = {query: number for number, query in enumerate(sorted(known))}
    lists = [sorted(known[query]) for query in sorted(known)]
    offsets = np.cumsum([0, *map(len, lists)])
    answers = Ragged(np.array(list(itertools.chain(*lists)), dtype=np.uint64), offsets)
    return Clashes(np.array([numbers[query] for query, _ in rows]), answers)


def answers_of(rows: Rows) -> dict[int, set[int]]:
    known: dict[int, set[int]] = {}
    for query, positives in rows:
        known.setdefault(query, set()).update(positives)
    return known


def clashing_pairs(rows: Rows, order: NDArray[np.int64], size: int) -> int:
    """How many pairs of rows share a batch and a passage that is known to answer both of their queries."""
    known = answers_of(rows)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    pairs = [pair for batch in batches for pair in itertools.combinations(batch.tolist(), 2)]
    return sum(bool(known[rows[one][0]] & known[rows[other][0]]) for one, other in pairs)


def random_groups(draw: np.random.Generator) -> tuple[Rows, list[int]]:
    """Rows in groups that are one component each: by one query, by one positive, or by a chain of both."""
    rows: Rows = []
    sizes = []
    for group in range(int(draw.integers(1, 25))):
        size, kind = int(draw.integers(1, 6)), draw.choice(["query", "positive", "chain"])
        for i in range(size):
            own = group * 100 + i
            query = group * 100 + {"query": 0, "positive": i, "chain": i // 2}[str(kind)]
            positives = {"query": {own}, "positive": {group * 100}, "chain": {group * 100 + (i + 1) // 2}}[str(kind)]
            rows.append((query, positives))
        sizes.append(size)
    mixed = draw.permutation(len(rows))
    return [rows[i] for i in mixed], sizes


@pytest.mark.parametrize("seed", range(200))
def test_no_two_rows_of_a_batch_clash_when_the_data_allow_it(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows, sizes = random_groups(draw)
    size = int(draw.integers(1, 12))
    batches, last = -(-len(rows) // size), (len(rows) - 1) % size + 1
    clashes = clashes_of(rows)
    for epoch in range(3):
        order = clashes.order(shuffle_bits(len(rows), seed, epoch, 0), size)
        assert sorted(order.tolist()) == list(range(len(rows)))
        if max(sizes) <= batches and sizes.count(batches) <= last:  # a full group needs a place in the last batch too
            assert clashing_pairs(rows, order, size) == 0


@pytest.mark.parametrize("seed", range(20))
def test_rows_that_all_hang_together_are_parted_too(seed: int) -> None:
    """Every row is connected to nearly every other, through few others each: dealing by component cannot help."""
    draw = np.random.default_rng(seed)
    rows: Rows = [(i, set(draw.choice(260, size=2, replace=False).tolist())) for i in range(300)]
    clashes = clashes_of(rows)
    assert np.bincount(clashes._component[clashes._component >= 0]).max() > 200
    bits = shuffle_bits(300, seed, 0, 0)
    assert clashing_pairs(rows, np.argsort(bits), 16) > 10
    assert clashing_pairs(rows, clashes.order(bits, 16), 16) == 0


def test_a_long_chain_is_one_component() -> None:
    rows: Rows = [(i, {i, i + 1}) for i in range(1000)]
    clashes = clashes_of([rows[i] for i in np.random.default_rng(0).permutation(1000)])
    assert len(set(clashes._component.tolist())) == 1


@pytest.mark.parametrize("size", [1, 5, 16, 64, 500])
def test_without_clashes_the_order_is_the_shuffle(size: int) -> None:
    rows: Rows = [(i, {i, 1000 + i}) for i in range(300)]
    bits = shuffle_bits(300, 3, 0, 0)
    assert clashes_of(rows).order(bits, size).tolist() == np.argsort(bits).tolist()


def test_other_rows_fill_the_batches_in_the_order_of_the_shuffle() -> None:
    rows: Rows = [(i, {i if i > 4 else 0}) for i in range(300)]  # five rows have one positive
    bits = shuffle_bits(300, 3, 0, 0)
    order = clashes_of(rows).order(bits, 16)
    assert clashing_pairs(rows, order, 16) == 0
    place = {int(i): number for number, i in enumerate(np.argsort(bits))}
    filled = [sorted(place[i] for i in order[start : start + 16].tolist() if i > 4) for start in range(0, 300, 16)]
    assert list(itertools.chain(*filled)) == [place[int(i)] for i in np.argsort(bits) if i > 4]


def test_what_cannot_be_parted_is_spread_evenly() -> None:
    """Two classes of one positive each, and one class more: as labels are in data for classification."""
    rows: Rows = [(i, {0 if i < 150 else 1 if i < 240 else i}) for i in range(300)]
    order = clashes_of(rows).order(shuffle_bits(300, 0, 0, 0), 20)
    counts = [[sum(low <= i < high for i in order[start : start + 20].tolist()) for start in range(0, 300, 20)]
              for low, high in ((0, 150), (150, 240))]  # fmt: skip
    assert counts == [[10] * 15, [6] * 15]


def test_clashing_rows_stand_anywhere_in_an_epoch_and_in_a_batch() -> None:
    rows: Rows = [(i // 2 if i < 40 else i, {i}) for i in range(400)]
    clashes = clashes_of(rows)
    places: list[Any] = []
    for epoch in range(50):
        order = clashes.order(shuffle_bits(400, 1, epoch, 0), 20)
        places += np.flatnonzero(order < 40).tolist()
    # 2,000 places: 100 in each batch, 100 at each place in it; five standard deviations are about 50.
    np.testing.assert_allclose(np.bincount(np.array(places) // 20, minlength=20), 100, atol=50)
    np.testing.assert_allclose(np.bincount(np.array(places) % 20, minlength=20), 100, atol=50)


@pytest.mark.parametrize("seed", range(50))
def test_rows_that_clash_are_parted_and_the_others_stay(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows, sizes = random_groups(draw)
    rows += [(10_000 + i, {10_000 + i}) for i in range(60)]
    size = 8
    batches = -(-len(rows) // size)
    wanted = draw.permutation(len(rows))
    order = clashes_of(rows).part(wanted, shuffle_bits(len(rows), seed, 0, 0), size)
    assert sorted(order.tolist()) == list(range(len(rows)))
    if max(sizes) <= batches // 2:
        assert clashing_pairs(rows, order, size) == 0
    batch_before, batch_after = (np.argsort(each) // size for each in (wanted, order))
    clashing = clashing_rows(rows, wanted, size)
    assert (batch_before != batch_after).sum() <= 2 * len(clashing)


def test_an_order_without_clashes_is_kept() -> None:
    rows: Rows = [(i // 2, {i // 2}) for i in range(40)]
    wanted = np.concatenate([np.arange(0, 40, 2), np.arange(1, 40, 2)])
    order = clashes_of(rows).part(wanted, shuffle_bits(40, 0, 0, 0), 10)
    assert np.array_equal(order, wanted)


def clashing_rows(rows: Rows, order: NDArray[np.int64], size: int) -> set[int]:
    """Rows that share a batch with another that they clash with."""
    known = answers_of(rows)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    pairs = [pair for batch in batches for pair in itertools.combinations(batch.tolist(), 2)]
    return {row for pair in pairs if known[rows[pair[0]][0]] & known[rows[pair[1]][0]] for row in pair}
