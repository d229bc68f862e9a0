from pathlib import Path

import numpy as np
import pytest
from data_files import row, table_of, write_jsonl
from numpy.typing import NDArray

from biencoder.data.plan.sampling import BatchPlan, KnownPositives, Sampler, share
from biencoder.data.random_bits import splitmix64
from biencoder.data.table import ExampleTable


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ExampleTable:
    """103 rows, of which row i has 1 + i % 3 positives and i % 7 negatives; queries repeat every 40 rows."""
    rows = [
        row(f"q{i % 40}", *[f"p{(i * k) % 60}" for k in range(1, 2 + i % 3)], neg=[f"n{i}-{k}" for k in range(i % 7)])
        for i in range(103)
    ]
    return table_of(tmp_path_factory.mktemp("sampling"), rows)


def arrays(plan: BatchPlan) -> list[NDArray[np.generic]]:
    return [
        plan.rows,
        plan.passage_row,
        plan.passage_index,
        plan.is_positive,
        plan.passage_hash,
        plan.group_starts,
    ]


def same(one: BatchPlan, other: BatchPlan) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(arrays(one), arrays(other), strict=True))


def test_an_epoch_holds_every_row_once_and_keeps_the_partial_batch(table: ExampleTable) -> None:
    sampler = Sampler(table, batch_size=16, group_size=4, seed=1)
    assert sampler.steps_per_epoch == 7
    plans = [sampler.plan(step) for step in range(14)]
    assert [len(plan.rows) for plan in plans] == [16] * 6 + [7] + [16] * 6 + [7]
    assert [plan.epoch for plan in plans] == [0] * 7 + [1] * 7
    epochs = [np.concatenate([plan.rows for plan in plans[i : i + 7]]) for i in (0, 7)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(103))
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_plan_depends_on_data_seed_and_step_alone(table: ExampleTable) -> None:
    def sampler(seed: int) -> Sampler:
        return Sampler(table, batch_size=16, group_size=4, seed=seed)

    forwards = sampler(3)
    plans = [forwards.plan(step) for step in range(21)]
    backwards = sampler(3)
    assert all(same(backwards.plan(step), plans[step]) for step in reversed(range(21)))
    assert same(sampler(3).plan(20), plans[20])
    assert not same(sampler(4).plan(20), plans[20])


def test_the_order_is_the_same_on_every_machine_and_numpy(tmp_path: Path) -> None:
    rows = [row(f"q{i}", *[f"p{i}-{k}" for k in range(1 + i % 3)], neg=["n", "m", "o"][: i % 4]) for i in range(103)]
    plan = Sampler(table_of(tmp_path, rows), batch_size=6, group_size=3, seed=42).plan(20)
    assert plan.rows.tolist() == [25, 84, 74, 71, 48, 30]
    assert plan.passage_index.tolist() == [0, 0, 0, 2, 1, 0, 2, 1, 2, 0, 0, 1, 0]


@pytest.mark.parametrize("group_size", [1, 2, 4, 8, 100])
def test_groups(table: ExampleTable, group_size: int) -> None:
    sampler = Sampler(table, batch_size=20, group_size=group_size, seed=0)
    for step in range(sampler.steps_per_epoch):
        plan = sampler.plan(step)
        assert plan.group_starts[0] == 0
        assert plan.group_starts[-1] == len(plan.passage_row) == len(plan.passage_hash)
        for i, number in enumerate(plan.rows):
            group = slice(*plan.group_starts[i : i + 2].tolist())
            counts = table[number]
            assert plan.passage_row[group].tolist() == [i] * (1 + min(group_size - 1, len(counts.negatives)))
            assert plan.is_positive[group].tolist()[0] is True
            assert not plan.is_positive[group][1:].any()
            positive, *negatives = plan.passage_index[group].tolist()
            assert 0 <= positive < len(counts.positives)
            assert len(set(negatives)) == len(negatives)
            assert set(negatives) <= set(range(len(counts.negatives)))
            hashes = table.negative_hashes.take(np.array([number])).values
            assert plan.passage_hash[group].tolist()[1:] == hashes[negatives].tolist()
            assert plan.passage_hash[group][0] == table.positive_hashes.take(np.array([number])).values[positive]


def test_positives_and_negatives_are_drawn_evenly_and_anew_each_epoch(tmp_path: Path) -> None:
    rows = [row(f"q{i}", "a", "b", "c", neg=["u", "v", "w", "x", "y"]) for i in range(300)]
    sampler = Sampler(table_of(tmp_path, rows), batch_size=300, group_size=3, seed=9)
    plans = [sampler.plan(epoch) for epoch in range(10)]
    positives = np.concatenate([plan.passage_index[plan.is_positive] for plan in plans])
    negatives = np.concatenate([plan.passage_index[~plan.is_positive] for plan in plans])
    # 3,000 bits of three and 6,000 of five: five standard deviations are about 129 and 155.
    np.testing.assert_allclose(np.bincount(positives), 1000, atol=129)
    np.testing.assert_allclose(np.bincount(negatives), 1200, atol=155)
    pairs = np.sort(negatives.reshape(-1, 2), axis=1)
    np.testing.assert_allclose(np.unique(pairs, axis=0, return_counts=True)[1], 300, atol=85)
    by_row = [plan.passage_index[plan.is_positive][np.argsort(plan.rows)] for plan in plans[:2]]
    assert 0.2 < (by_row[0] == by_row[1]).mean() < 0.5


def test_data_without_negatives(tmp_path: Path) -> None:
    plan = Sampler(table_of(tmp_path, [row("q", "p"), row("r", "s")]), batch_size=8, group_size=8, seed=0).plan(0)
    assert plan.group_starts.tolist() == [0, 1, 2]
    assert plan.is_positive.all()


def test_the_bits_of_splitmix64() -> None:
    # The reference generator (Vigna, splitmix64.c) started at 0 and at its next state gives these.
    states = np.array([0, 0x9E3779B97F4A7C15], dtype=np.uint64)
    assert splitmix64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("total", [0, 1, 5, 16, 103])
def test_shares_are_contiguous_and_nearly_equal(total: int, world: int) -> None:
    parts = [share(total, rank, world) for rank in range(world)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(total))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def brute_force(table: ExampleTable, plan: BatchPlan) -> NDArray[np.bool_]:
    """The definition, text by text."""
    known: dict[str, set[str]] = {}
    for i in range(len(table)):
        known.setdefault(table[i].query, set()).update(table[i].positives)
    texts = []
    for place, index, positive in zip(plan.passage_row, plan.passage_index, plan.is_positive, strict=True):
        example = table[plan.rows[place]]
        texts.append((example.positives if positive else example.negatives)[index])
    answers = [known[table[i].query] for i in plan.rows]
    known_to_answer = np.array([[text in mine for text in texts] for mine in answers])
    known_to_answer[np.arange(len(answers)), plan.group_starts[:-1]] = False  # its own positive
    return known_to_answer


def mask(known: KnownPositives, plan: BatchPlan, queries: slice) -> NDArray[np.bool_]:
    """The cells of these queries and all passages in full."""
    found = np.zeros((queries.stop - queries.start, len(plan.passage_hash)), dtype=bool)
    found[known.cells(plan, queries, np.arange(len(plan.passage_hash)))] = True
    return found


def test_known_positives_are_those_of_the_definition(table: ExampleTable) -> None:
    known = KnownPositives(table)
    sampler = Sampler(table, batch_size=32, group_size=4, seed=5)
    extra = 0
    for step in range(sampler.steps_per_epoch):
        plan = sampler.plan(step)
        wanted = brute_force(table, plan)
        np.testing.assert_array_equal(mask(known, plan, slice(0, len(plan.rows))), wanted)
        parts = [mask(known, plan, share(len(plan.rows), rank, 3)) for rank in range(3)]
        np.testing.assert_array_equal(np.concatenate(parts), wanted)
        extra += wanted.sum()
    assert extra > 100  # the data has false negatives to find


def test_what_is_masked(tmp_path: Path) -> None:
    rows = [
        row("a", "a1", "a2"),
        row("a", "a3"),  # the same query again, in another row
        row("b", "a1", neg=["a3", "b1"]),  # a positive of a, and hard negatives that answer a and b
        row("c", "c1", neg=["a2", "c1"]),  # c1 comes back as its own hard negative
        row("b", "b1"),
    ]
    table = table_of(tmp_path, rows)
    plan = Sampler(table, batch_size=5, group_size=3, seed=0).plan(0)
    found = mask(KnownPositives(table), plan, slice(0, 5))
    answers = {"a": {"a1", "a2", "a3"}, "b": {"a1", "b1"}, "c": {"c1"}}
    texts = [
        rows[plan.rows[place]]["pos" if positive else "neg"][index]
        for place, index, positive in zip(plan.passage_row, plan.passage_index, plan.is_positive, strict=True)
    ]
    for i, number in enumerate(plan.rows):
        masked = [text in answers[rows[number]["query"]] for text in texts]
        masked[plan.group_starts[i]] = False
        assert found[i].tolist() == masked


def test_a_rank_without_queries_masks_nothing(table: ExampleTable) -> None:
    plan = Sampler(table, batch_size=8, group_size=2, seed=0).plan(0)
    assert not mask(KnownPositives(table), plan, slice(3, 3)).any()


def test_medquad_repeats_are_masked(medquad: Path) -> None:
    table = ExampleTable.from_files([medquad / "train.jsonl.gz"])
    plan = Sampler(table, batch_size=2048, group_size=8, seed=42).plan(0)
    found = mask(KnownPositives(table), plan, slice(0, 2048))
    np.testing.assert_array_equal(found, brute_force(table, plan))
    assert found.any()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> ExampleTable:
    """Pairs of which some share a query or a positive; few labels for many texts; scored sentences."""
    folder, draw = tmp_path_factory.mktemp("three"), np.random.default_rng(0)
    retrieval = [row(f"q{i // 2 if i < 60 else i}", f"p{draw.integers(300)}", neg=["n"]) for i in range(250)]
    labels = [row(f"text {i}", f"label {i % 5}", neg=[f"label {k}" for k in range(5) if k != i % 5]) for i in range(90)]
    scored = [{"sentence1": f"s{i}", "sentence2": f"t{i}", "score": i / 40} for i in range(41)]
    files = [write_jsonl(folder / f"{i}.jsonl", rows) for i, rows in enumerate((retrieval, labels, scored))]
    return ExampleTable.from_data_sets([[file] for file in files])


SETS = (range(250), range(250, 340), range(340, 381))


@pytest.mark.parametrize("mix", ["size", "sqrt", "equal"])
def test_a_batch_is_of_one_data_set_and_each_has_its_share(three: ExampleTable, mix: str) -> None:
    sampler = Sampler(three, batch_size=16, group_size=[3, 5, 1], seed=4, weights=[1.0, 1.0, 1.0], mix=mix)
    assert sampler.steps_per_epoch == 16 + 6 + 3
    assert sampler.turns.tolist() == {"size": [16, 6, 3], "sqrt": [12, 8, 5], "equal": [9, 8, 8]}[mix]
    seen: list[list[int]] = [[], [], []]
    for step in range(3 * sampler.steps_per_epoch):
        plan = sampler.plan(step)
        assert set(plan.rows.tolist()) <= set(SETS[plan.data_set])  # never a mixed batch
        assert plan.epoch == step // sampler.steps_per_epoch
        assert np.diff(plan.group_starts).max() == [2, 5, 1][plan.data_set]
        seen[plan.data_set] += plan.rows.tolist()
        if mix == "size" and (step + 1) % sampler.steps_per_epoch == 0:
            assert [sorted(rows) for rows in seen] == [sorted(rows) for rows in SETS]  # every row once an epoch
            seen = [[], [], []]
    for rows, mine in zip(seen, SETS, strict=True):  # in every pass once, and passes follow each other
        passes = [rows[start : start + len(mine)] for start in range(0, len(rows), len(mine))]
        assert all(len(set(each)) == len(each) for each in passes)
        assert len(passes) < 2 or passes[0] != passes[1][: len(passes[0])]


def test_batches_of_many_data_sets_know_no_clash_and_no_history(three: ExampleTable) -> None:
    def sampler() -> Sampler:
        return Sampler(three, batch_size=16, group_size=[3, 5, 1], seed=4, weights=[1.0, 2.0, 1.0], mix="sqrt")

    whole = sampler()
    plans = [whole.plan(step) for step in range(2 * whole.steps_per_epoch)]
    resumed = sampler()
    for step in (len(plans) - 1, 7, 30, 0, 1):
        assert same(resumed.plan(step), plans[step])
    known: dict[str, set[str]] = {}
    for i in SETS[0]:
        known.setdefault(three[i].query, set()).update(three[i].positives)
    for plan in plans:
        if plan.data_set == 0:
            answers = [known[three[i].query] for i in plan.rows]
            assert len(set.union(*answers)) == sum(map(len, answers))


def test_a_single_data_set_is_sampled_as_if_there_were_no_others(three: ExampleTable) -> None:
    alone = Sampler(three.select(np.arange(250)), batch_size=16, group_size=3, seed=4)
    together = Sampler(three, batch_size=16, group_size=3, seed=4, weights=[1.0, 1.0, 1.0])
    plans = [plan for plan in map(together.plan, range(together.steps_per_epoch)) if plan.data_set == 0]
    assert all(same(plan, alone.plan(step)) for step, plan in enumerate(plans))


def test_batches_hold_whole_clusters_but_for_rows_that_clash(three: ExampleTable) -> None:
    places = np.full(len(three), -1)
    places[:250] = np.random.default_rng(0).permutation(250)
    plain = Sampler(three, batch_size=16, group_size=3, seed=4, weights=[1.0, 1.0, 1.0])
    clustered = plain.clustered(places, 8)
    neighbours, distinct = [], set()
    for step in range(2 * clustered.steps_per_epoch):
        plan = clustered.plan(step)
        if plan.data_set != 0:  # of a data set without places, nothing changes
            assert same(plan, plain.plan(step))
            continue
        near = np.sort(places[plan.rows])
        neighbours.append((np.diff(near) == 1).mean())
        distinct.add(tuple(near))
        answers = [set(three[i].positives) for i in plan.rows]
        assert len(set.union(*answers)) == sum(map(len, answers))
    assert np.mean(neighbours) > 0.5  # of rows at random, one in sixteen
    assert len(distinct) == 2 * 16  # in the second epoch other clusters meet than in the first
