"""One rank's share of a global batch: its texts, and what is what among everybody's passages."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_tokenizer

from biencoder.data.plan.sampling import BatchPlan, KnownPositives, Sampler, share
from biencoder.data.table import ExampleTable
from biencoder.model.tokens import tokenize
from biencoder.training.batch import Batcher, Prompts, TrainingBatch

ROWS: list[dict[str, Any]] = [
    {"query": "word0", "pos": ["word10"], "neg": ["word11", "word12"], "pos_scores": [5.0], "neg_scores": [1.0, 0.5]},
    {"query": "word1", "pos": ["word13", "word14"], "neg": []},
    {"query": "word0", "pos": ["word15"], "neg": ["word10"]},  # its negative answers the same query in the first row
    {"query": "word2", "pos": ["word16"], "neg": ["word17", "word18", "word19"], "prompt": "word9 "},
    {"query": "word3", "pos": ["word13"], "neg": ["word20"]},
]
TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ExampleTable:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return ExampleTable.from_files([path])


@pytest.fixture(scope="module")
def plan(table: ExampleTable) -> BatchPlan:
    return Sampler(table, batch_size=len(ROWS), group_size=3, seed=0).plan(0)


@pytest.fixture(scope="module")
def batcher(table: ExampleTable) -> Batcher:
    return Batcher(
        table=table,
        tokenize_queries=lambda texts: tokenize(TOKENIZER, texts, 16),
        tokenize_passages=lambda texts: tokenize(TOKENIZER, texts, 16),
        prompts=[Prompts("word7 ", "word8 ")],
        chunk_tokens=12,
        known_positives=KnownPositives(table),
    )


def texts(batch: TrainingBatch) -> list[str]:
    """The batch's texts in the order queries, passages, put together again out of its chunks."""
    found = [""] * batch.texts
    for chunk in batch.chunks:
        parts = chunk.batch.input_ids.split(list(chunk.batch.lengths))
        for place, part in zip(chunk.index.tolist(), parts, strict=True):
            found[place] = TOKENIZER.decode(part, skip_special_tokens=True)
    return found


def passage(plan: BatchPlan, number: int) -> str:
    row = ROWS[plan.rows[plan.passage_row[number]]]
    return str(row["pos" if plan.is_positive[number] else "neg"][plan.passage_index[number]])


def test_one_rank_has_every_query_and_passage_with_its_prompt(batcher: Batcher, plan: BatchPlan) -> None:
    batch = batcher(plan)
    queries = [ROWS[row] for row in plan.rows]
    assert texts(batch) == [row.get("prompt", "word7 ") + row["query"] for row in queries] + [
        f"word8 {passage(plan, number)}" for number in range(len(plan.passage_row))
    ]
    assert (batch.queries, batch.total_queries, batch.passage_sizes) == (5, 5, [len(plan.passage_row)])
    assert batch.tokens == sum(chunk.tokens for chunk in batch.chunks)
    assert all(chunk.tokens <= 12 for chunk in batch.chunks)


def test_groups_point_at_their_own_passages_the_positive_first(batcher: Batcher, plan: BatchPlan) -> None:
    groups = batcher(plan).labels.groups.tolist()
    for row, group in zip(plan.rows, groups, strict=True):
        own = [passage(plan, number) for number in group if number >= 0]
        assert own[0] in ROWS[row]["pos"]
        assert len(own) == 1 + min(2, len(ROWS[row]["neg"]))
        assert set(own[1:]) <= set(ROWS[row]["neg"])
        assert group[len(own) :] == [-1] * (3 - len(own))


def test_what_answers_a_query_is_masked(batcher: Batcher, plan: BatchPlan) -> None:
    known = batcher(plan).labels.rows(slice(None)).known_positives
    assert known is not None
    answers: dict[str, set[str]] = {}
    for row in ROWS:
        answers.setdefault(row["query"], set()).update(row["pos"])
    for i, row in enumerate(plan.rows):
        for number in range(len(plan.passage_row)):
            answers_it = passage(plan, number) in answers[ROWS[row]["query"]]
            assert bool(known[i, number]) == (answers_it and number != plan.group_starts[i])
    assert replace(batcher, known_positives=None)(plan).labels.known_positives is None


def test_teacher_scores_stand_where_their_passages_do(batcher: Batcher, plan: BatchPlan, table: ExampleTable) -> None:
    labels = batcher(plan).labels
    assert labels.teacher is not None
    for row, group, scores in zip(plan.rows, labels.groups.tolist(), labels.teacher.tolist(), strict=True):
        for number, score in zip(group, scores, strict=True):
            wanted = {"word10": 5.0, "word11": 1.0, "word12": 0.5}.get(passage(plan, number)) if number >= 0 else None
            assert math.isnan(score) if row != 0 or wanted is None else score == wanted
    untaught = table.select(plan.rows[plan.rows != 0])
    again = replace(batcher, table=untaught, known_positives=None)
    assert again(Sampler(untaught, batch_size=4, group_size=3, seed=0).plan(0)).labels.teacher is None


@pytest.mark.parametrize("world", [2, 3, 7])
def test_the_ranks_together_are_the_one(batcher: Batcher, plan: BatchPlan, world: int) -> None:
    whole = batcher(plan)
    parts = [replace(batcher, rank=rank, world=world)(plan) for rank in range(world)]
    queries = [text for part in parts for text in texts(part)[: part.queries]]
    passages = [text for part in parts for text in texts(part)[part.queries :]]
    assert queries + passages == texts(whole)
    assert [part.queries for part in parts] == [len(range(5)[share(5, rank, world)]) for rank in range(world)]
    known = whole.labels.rows(slice(None)).known_positives
    assert known is not None
    for rank, part in enumerate(parts):
        assert part.total_queries == 5
        assert part.passage_sizes == [other.texts - other.queries for other in parts]
        mine = share(5, rank, world)
        width = part.labels.groups.shape[1]
        assert part.labels.groups.tolist() == whole.labels.groups[mine, :width].tolist()
        mine_known = part.labels.rows(slice(None)).known_positives
        assert known[mine].any() == (mine_known is not None)
        assert mine_known is None or mine_known.equal(known[mine])


def test_without_sharing_a_rank_counts_its_own_passages_only(batcher: Batcher, plan: BatchPlan) -> None:
    for rank in range(2):
        part = replace(batcher, rank=rank, world=2, cross_device=False)(plan)
        own = texts(part)[part.queries :]
        assert part.passage_sizes == [len(own)]
        assert part.total_queries == 5
        known = part.labels.rows(slice(None)).known_positives
        assert known is None or known.shape == (part.queries, len(own))
        for row, group in zip(plan.rows[share(5, rank, 2)], part.labels.groups.tolist(), strict=True):
            assert own[group[0]].removeprefix("word8 ") in ROWS[row]["pos"]
            assert max(group) < len(own)


def test_a_batch_goes_to_a_device_as_a_whole(batcher: Batcher, plan: BatchPlan) -> None:
    batch = batcher(plan)
    moved = batch.to(torch.device("meta"))
    for chunk, there in zip(batch.chunks, moved.chunks, strict=True):
        assert chunk.tokens == there.tokens
        assert chunk.batch.lengths == there.batch.lengths
        tensors = (there.batch.input_ids, there.index, there.batch.packing.starts)
        assert all(tensor.is_meta for tensor in tensors)
    assert moved.labels.groups.is_meta
    assert moved.labels.known_positives is not None
    assert moved.labels.known_positives.columns.is_meta
    assert (moved.queries, moved.tokens, moved.texts) == (batch.queries, batch.tokens, batch.texts)
    assert not batch.labels.groups.is_meta


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_a_text_has_the_same_number_whichever_rank_has_it(batcher: Batcher, plan: BatchPlan, world: int) -> None:
    alone = texts(batcher(plan))
    found = dict[int, str]()
    for rank in range(world):
        batch = replace(batcher, rank=rank, world=world)(plan)
        numbers = batch.numbers(torch.arange(batch.texts)).tolist()
        assert not found.keys() & numbers
        found |= dict(zip(numbers, texts(batch), strict=True))
    assert found == dict(enumerate(alone))
