"""The commands on one, two and four ranks: the same bytes, also of a run that was killed on another number of ranks."""

import contextlib
import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import world
from command_lines import GOOD
from fault_points import AtCall, AtOperation
from tiny import WORDS, random_texts, tiny_cross_encoder

from biencoder.cli import COMMANDS, main
from biencoder.config import TrainConfig
from biencoder.data.data_sets import read_data_sets
from biencoder.device.cpu import Cpu
from biencoder.distributed import process_group
from biencoder.model.cross_encoder import CrossEncoder
from biencoder.model.encoder import Encoder
from biencoder.model.packing import PackedBatch
from biencoder.model.representations.representation import Representation
from biencoder.retrieval import encode, search
from biencoder.retrieval.scoring import by_cross_encoder
from biencoder.training.sources import clusters
from biencoder.training.sources.glance import glance
from biencoder.training.sources.negatives import mine_places

PASSAGES, QUERIES = 60, 22
MOST_AT_ONCE = 15  # texts that one rank encodes while others may wait


def work_on(model: str, command: str, *words: str) -> list[str]:
    flag = "--reranker" if model == "reranker" else "--model"
    return [command, *([flag, f"../{model}"] if model else []), "--device", "cpu", *words]


ENCODE = work_on(world.MULTI, "encode", "--input", "../texts.txt", "--output", "multi.npy")
SCORE = work_on("reranker", "score", "--train-data", "../pairs.jsonl", "--output", "scored.jsonl")
DATA, CORPUS = ["--data", "../beir"], ["--corpus", "../texts.txt"]
ALL = [
    ENCODE,
    work_on(world.BERT, "encode", "--input", "../texts.txt", "--output", "bert.npy"),
    work_on(world.SPARSE, "encode", "--input", "../texts.txt", "--output", "sparse.npz"),
    work_on(world.THREE, "encode", "--input", "../texts.txt", "--output", "three.npy", "--kind", "query"),
    *(work_on(model, "evaluate", *DATA, "--output", f"{model}.json", "--run-file", f"{model}.trec")
      for model in (world.BERT, world.MULTI, world.SPARSE, world.THREE)),
    work_on(world.BERT, "search", *CORPUS, "--queries", "../queries.txt", "--output", "hits.jsonl"),
    work_on(world.BERT, "search", *CORPUS, "--queries", "../queries.txt", "--output", "near.jsonl",
            "--corpus-embeddings", "bert.npy", "--approximate"),
    work_on(world.BERT, "mine", "--train-data", "../pairs.jsonl", "--output", "mined.jsonl",
            "--reranker", "../reranker", "--max-share", "2"),
    work_on(world.BERT, "mine", "--train-data", "../pairs.jsonl", "--output", "by-index.jsonl", "--exact-up-to", "9",
            "--max-share", "2"),
    work_on(world.MULTI, "score", "--train-data", "../pairs.jsonl", "--output", "by-vectors.jsonl"),
    SCORE,
    work_on("", "diff", "../bert", "../dense", *DATA, "--output", "changes.jsonl"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    world.write_models(folder)
    tiny_cross_encoder(folder / "reranker")
    texts = random_texts(PASSAGES, longest=40, seed=3)
    queries = [" ".join(text.split()[:4]) or WORDS[0] for text in texts[:QUERIES]]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")
    (folder / "queries.txt").write_text("\n".join(queries) + "\n")
    rows = [{"query": query, "pos": [texts[i] or "word1"], "neg": [texts[-i - 1]]} for i, query in enumerate(queries)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "beir" / "qrels").mkdir(parents=True)
    for name, lines in (("corpus", texts), ("queries", queries)):
        written = [json.dumps({"_id": f"{i}", "text": text}) + "\n" for i, text in enumerate(lines)]
        (folder / "beir" / f"{name}.jsonl").write_text("".join(written))
    (folder / "beir" / "qrels" / "test.tsv").write_text("".join(f"{i}\t{i}\t1\n" for i in range(QUERIES)))
    return folder


@contextlib.contextmanager
def rank_in(place: Path, rank: int, ranks: int) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """One of the processes that torchrun starts, in a folder; small data are many pieces of work."""
    place.mkdir(exist_ok=True)
    os.chdir(place)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    Cpu.encode_tokens, Cpu.encode_texts = 96, 13
    encode.CHUNK = 9
    search.QUERIES_AT_ONCE, search.TEXTS_AT_ONCE, search.PAIRS_AT_ONCE = 4, 3, 5
    by_cross_encoder.WINDOW_PAIRS = 12
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def every_command(rank: int, ranks: int, folder: Path) -> Any:
    """Codes, what was printed, and how many texts or pairs this rank gave to a model, for each command."""
    given = [0]
    forward, pad = Encoder.forward, CrossEncoder._pad

    def counted(encoder: Encoder, batch: PackedBatch) -> Representation:
        given[-1] += len(batch.lengths)
        return forward(encoder, batch)

    def counted_pairs(model: CrossEncoder, features: Any, batch: Any) -> Any:
        given[-1] += len(batch)
        return pad(model, features, batch)

    setattr(Encoder, "forward", counted)  # noqa: B010
    setattr(CrossEncoder, "_pad", counted_pairs)  # noqa: B010
    codes = []
    with rank_in(folder / f"on-{ranks}", rank, ranks) as (out, err):
        for command in ALL:
            codes.append(main(command))
            given.append(0)
    return codes, out.getvalue(), err.getvalue(), given[:-1]


def test_every_command_writes_the_same_bytes_on_any_number_of_ranks(folder: Path) -> None:
    ((codes, said, err, texts),) = world.run(1, folder, every_command)
    assert codes == [0] * len(ALL), err
    wanted = files(folder / "on-1")
    assert {"multi.npy", "sparse.npz", "three.npy", "mined.jsonl", "by-index.jsonl", "changes.jsonl"} <= wanted.keys()
    for ranks in (2, 4):
        found = world.run(ranks, folder, every_command)
        assert [codes for codes, *_ in found] == [[0] * len(ALL)] * ranks, found
        assert [said for _, said, *_ in found] == [said] + [""] * (ranks - 1)
        written = files(folder / f"on-{ranks}")
        assert written.keys() == wanted.keys()
        assert [name for name in wanted if written[name] != wanted[name]] == []
        for command, whole, shares in zip(ALL, texts, zip(*(given for *_, given in found), strict=True), strict=True):
            assert sum(shares) == whole, command
            assert max(shares) < 1.1 * whole / ranks + MOST_AT_ONCE, (command, shares)


KILLS = {
    "encode": (ENCODE, AtCall("biencoder.retrieval.encode", "finite", 5)),
    "score": (SCORE, AtCall("biencoder.retrieval.scoring.by_cross_encoder", "write_json", 2)),
}


def killed_in_encode(rank: int, ranks: int, folder: Path) -> None:
    killed("encode", rank, ranks, folder)


def killed_in_score(rank: int, ranks: int, folder: Path) -> None:
    killed("score", rank, ranks, folder)


def killed(name: str, rank: int, ranks: int, folder: Path) -> None:
    """The first rank is killed in the command; what the others say then is in a file for each."""
    command, fault = KILLS[name]
    with rank_in(folder / "killed", rank, ranks) as (_, err):
        if rank == 0:
            fault.arm(folder / "killed")
        code = leave(command)
    (folder / f"{name}-{rank}").write_text(err.getvalue())
    os._exit(code)


def leave(command: list[str]) -> int:
    """The exit code, as the interpreter sees it."""
    try:
        return main(command)
    except SystemExit as end:
        return int(end.code or 0)


def go_on(rank: int, ranks: int, folder: Path) -> Any:
    with rank_in(folder / f"gone-on-{ranks}", rank, ranks) as (_, err):
        return [main(ENCODE), main(SCORE)], err.getvalue()


def test_killed_on_four_ranks_and_continued_on_one_or_two_gives_the_same_bytes(folder: Path) -> None:
    if not (folder / "on-1").exists():
        world.run(1, folder, every_command)
    for work, name in ((killed_in_encode, "encode"), (killed_in_score, "score")):
        assert world.start(4, folder, work) == [-signal.SIGKILL, 1, 1, 1]
        said = [(folder / f"{name}-{rank}").read_text() for rank in (1, 2, 3)]
        assert sum("another process of this run was killed" in text for text in said) == 1, said
        assert sum("biencoder: error: " in text for text in said) == 1, said
    left = files(folder / "killed")
    assert {"multi.npy.partial", "scored.jsonl.partial"} <= left.keys()
    assert not {"multi.npy", "scored.jsonl"} & left.keys()
    for ranks in (1, 2):
        shutil.copytree(folder / "killed", folder / f"gone-on-{ranks}")
        for codes, _ in (found := world.run(ranks, folder, go_on)):
            assert codes == [0, 0], found
        assert "continuing after 45 of 60 texts" in found[0][1]
        assert "continuing after 12 of 22 rows" in found[0][1]
        for name, content in files(folder / f"gone-on-{ranks}").items():
            assert content == (folder / "on-1" / name).read_bytes(), name


def in_training(rank: int, ranks: int, folder: Path) -> Any:
    """What a run asks its model, beside evaluations: clusters, negatives and a glance at passages."""
    config = TrainConfig(
        model="", train_data=(folder / "pairs.jsonl",), output_dir=folder, cluster_size=4, mine_negatives=2
    )
    with rank_in(folder / "training", rank, ranks), process_group("cpu"):
        clusters.ENCODED_AT_ONCE = 5
        encoder = Encoder.load(folder / world.BERT, device="cpu")
        table = read_data_sets(config.data_sets, "stop")
        texts = (folder / "texts.txt").read_text().splitlines()
        near = glance(encoder, 60).find(texts[:9], texts[:9], texts, 4)
        return (
            clusters.similar_rows(encoder, table, config).tolist(),
            mine_places(encoder, table, config).tolist(),
            [[row.tolist() for row in part] for part in near],
        )


def test_a_training_run_gets_the_same_answers_from_any_number_of_ranks(folder: Path) -> None:
    (alone,) = world.run(1, folder, in_training)
    assert sorted(alone[0]) == list(range(QUERIES))
    assert any(place >= 0 for row in alone[1] for place in row)
    assert world.run(3, folder, in_training) == [alone] * 3


def mistake_of_all(rank: int, ranks: int, folder: Path) -> None:
    with rank_in(folder / "mistakes", rank, ranks) as (_, err):
        code = leave(work_on(world.BERT, "encode", "--input", "missing.txt", "--output", "out.npy"))
    (folder / f"of-all-{rank}").write_text(err.getvalue())
    os._exit(code)


def no_space_for_one(rank: int, ranks: int, folder: Path) -> None:
    with rank_in(folder / "mistakes", rank, ranks) as (_, err):
        if rank == 0:
            AtOperation(1, "full", "*", "out.npy.partial.json").arm(folder / "mistakes")
        code = leave(work_on(world.BERT, "encode", "--input", "../texts.txt", "--output", "out.npy"))
    (folder / f"of-one-{rank}").write_text(err.getvalue())
    os._exit(code)


def test_a_mistake_is_said_once_and_ends_all_ranks(folder: Path) -> None:
    assert world.start(3, folder, mistake_of_all) == [2, 2, 2]
    said = sorted((folder / f"of-all-{rank}").read_text() for rank in range(3))
    assert said[:2] == ["", ""]
    assert said[2].startswith("biencoder: error: ")
    assert "missing.txt" in said[2]
    assert world.start(2, folder, no_space_for_one) == [2, 1]
    assert "No space left on device" in (folder / "of-one-0").read_text()
    assert "biencoder: error: " not in (folder / "of-one-1").read_text()
    assert not (folder / "mistakes" / "out.npy").exists()


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not command.shares])
def test_other_commands_say_that_they_are_for_one_process(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([name, *GOOD[name]]) == 2
    message = f"biencoder: error: biencoder {name} is work for one process; type it without torchrun\n"
    assert capsys.readouterr() == ("", message)
