"""The command under torchrun, as a person starts it: real processes, gloo on the CPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny import WORDS, tiny_model
from torch import nn

from biencoder.cli import main
from biencoder.training.progress import TrainingProgress
from biencoder.training.setup import Setup

GREETING = "number of connected peer ranks is"  # what gloo prints before PyTorch 2.11
ROWS, BATCH, EPOCHS = 25, 8, 2  # the last batch of an epoch is one query: no work for most ranks
STEPS = EPOCHS * 4
SECONDS = 120  # in which every run ends, also a broken one


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ragged groups, a query in two rows, a positive of two queries, a negative that is another row's positive."""
    folder = tmp_path_factory.mktemp("place")
    tiny_model(folder / "model")
    tiny_model(folder / "dropout", dropout=True)
    draw = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for i in range(ROWS):
        query, *texts = (" ".join(draw.choice(WORDS, size=size)) for size in (4, *draw.integers(60, 90, size=4)))
        rows.append({"query": query, "pos": texts[:1], "neg": texts[1 : 1 + i % 4]})
    rows[1]["query"] = rows[0]["query"]
    rows[3]["pos"] = rows[2]["pos"]
    rows[5]["neg"] = [*rows[4]["pos"], *rows[1]["pos"]]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "beir" / "qrels").mkdir(parents=True)
    for name, count in (("corpus", 60), ("queries", 20)):
        lines = [json.dumps({"_id": word, "text": word}) + "\n" for word in WORDS[:count]]
        (folder / "beir" / f"{name}.jsonl").write_text("".join(lines))
    (folder / "beir" / "qrels" / "test.tsv").write_text("".join(f"{word}\t{word}\t1\n" for word in WORDS[:20]))
    return folder


def words(place: Path, output: Path, model: str = "model", **more: object) -> list[str]:
    options = {
        "model": place / model, "train-data": place / "pairs.jsonl", "eval-data": place / "beir", "output-dir": output,
        "batch-size": BATCH, "group-size": 4, "epochs": EPOCHS, "learning-rate": 1e-3, "precision": "fp32",
        "memory-budget": "1MB", "save-steps": 3, "eval-steps": 4,
    } | {name.replace("_", "-"): value for name, value in more.items()}  # fmt: skip
    given = (word for name, value in options.items() for word in (f"--{name}", str(value)))
    return ["train", "--no-general-guard", "--no-cross-validate", *given]


def start(ranks: int, command: list[str], path: Path | None = None) -> "subprocess.Popen[str]":
    """``torchrun … -m biencoder``; ``path`` holds a ``sitecustomize`` for every process."""
    found = os.pathsep.join(str(each) for each in (path, os.environ.get("PYTHONPATH")) if each)
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": found} if found else {})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return subprocess.Popen(
        [*torchrun, "-m", "biencoder", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise
    return process.returncode, "".join(line for line in out.splitlines(True) if GREETING not in line), err


def kill_all(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to torchrun and to the processes that it started, which outlive it otherwise."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def weights(folder: Path) -> dict[str, np.ndarray]:
    return dict(load_file(folder / "model.safetensors"))


def last_checkpoint(output: Path) -> Path:
    return output / "checkpoints" / f"step-{STEPS:08d}"


def assert_same_bits(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not np.array_equal(first[name], second[name])] == []


def metrics(output: Path) -> list[dict[str, Any]]:
    """The whole lines, of which there are none before the run begins."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(output: Path) -> list[float]:
    return [record["loss"] for record in metrics(output) if "loss" in record]


def errors_of_ours(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("biencoder: error: ")]


@pytest.fixture(scope="module")
def alone(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process."""
    output = tmp_path_factory.mktemp("alone") / "out"
    assert main(words(place, output, model="dropout")) == 0
    return output


def assert_trained_alike(output: Path, wanted: Path, base: Path) -> None:
    """The same weights up to the order of sums, in checkpoints of all steps."""
    got, want = weights(last_checkpoint(output)), weights(last_checkpoint(wanted))
    begun = {f"backbone.{name}": weight for name, weight in weights(base).items()}
    for name in want:
        if name.startswith("backbone.pooler."):
            assert np.array_equal(got[name], begun[name])
        elif not name.endswith("key.bias"):  # its true gradient is 0, and AdamW makes a step of the rounding
            size, moved = np.linalg.norm(want[name]), np.linalg.norm(want[name] - begun[name])
            assert moved >= 1e-3 * size, name
            # The same for one weight in 500: where its gradient is near 0, AdamW's step is as long as anywhere.
            apart = np.sort(np.abs(got[name] - want[name]), axis=None)
            assert np.linalg.norm(apart[: -(apart.size // 500) or None]) <= 1e-5 * size, name
            assert np.linalg.norm(apart) <= 1e-2 * moved, name
    np.testing.assert_allclose(losses(output), losses(wanted), rtol=1e-5)


def test_a_dry_run_of_many_processes_says_it_once_and_writes_nothing(place: Path, tmp_path: Path) -> None:
    code, out, err = finish(start(2, [*words(place, tmp_path / "out"), "--dry-run"]))
    assert code == 0, err
    assert out.count("estimate: about") == 1
    assert out.splitlines()[-1].startswith("dry run: nothing was written")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ranks", [2, 3])
def test_many_processes_train_the_model_that_one_trains(ranks: int, place: Path, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    code, out, err = finish(start(ranks, words(place, output, model="dropout")))
    assert code == 0, err
    assert_trained_alike(output, alone, place / "dropout")

    # Some chunks were replayed, also in a rank's share of a batch.
    keep = json.loads((last_checkpoint(output) / "state.json").read_text())["tokens"]["keep"]
    first_step = next(record for record in metrics(output) if "loss" in record)
    assert keep < 0.8 * first_step["tokens_per_second"] * first_step["seconds"] / ranks

    # Evaluated together, and before the first step exactly as by one process; written once, said once.
    assert metrics(output)[0]["evaluation"] == metrics(alone)[0]["evaluation"]
    assert [record["step"] for record in metrics(output)] == [record["step"] for record in metrics(alone)]
    assert [record["step"] for record in metrics(output) if "evaluation" in record] == [0, STEPS // 2, STEPS]
    names, wanted = ({str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (output, alone))
    assert names == wanted
    lines = out.splitlines()
    for line in (f"step {STEPS} of {STEPS}: ", "Before and after, on ", f"The model is in {output}"):
        assert sum(each.startswith(line) for each in lines) == 1
    assert sum(f"over {ranks} processes" in line for line in lines) == 1
    assert err.count(f"train {STEPS}/{STEPS}") == 1


def test_many_processes_choose_one_share_of_the_base(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    guard = tmp_path / "guard"
    shutil.copytree(place / "beir", guard)
    corpus = [
        {"_id": word, "text": f"{word} {' '.join(WORDS[100 + i : 104 + i])}"} for i, word in enumerate(WORDS[:60])
    ]
    (guard / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    high = 2e-2  # so that the guard loses something
    code, out, err = finish(start(2, words(place, output, guard_data=guard, epochs=1, learning_rate=high)))
    assert code == 0, err
    found = json.loads((output / "eval.json").read_text())
    share = found["keep_base"]
    assert share > 0
    assert sum(f"({share:g})" in line for line in out.splitlines()) == 1  # said once
    tuned = weights(output / "checkpoints" / f"best-{found['after_step']:08d}")
    base, saved = weights(place / "model"), weights(output)
    for name, weight in saved.items():
        mixed = share * base[name] + (1 - share) * tuned.get(f"backbone.{name}", base[name])
        np.testing.assert_allclose(weight, mixed, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two ranks: dropout on, chunks replayed."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert finish(start(2, words(place, output, model="dropout")))[0] == 0
    return output


HOLD = """
import os, signal, time
from pathlib import Path
if os.environ.get("RANK") == "1":
    from biencoder.training.steps import train_step as step
    real, calls = step.sum_gradients, iter(range(10**6))
    def hold():
        heard, before = [], signal.getsignal(signal.SIGTERM)
        def hear(number, frame):
            heard.append(number)
            before(number, frame)
        signal.signal(signal.SIGTERM, hear)
        Path({held!r}).touch()
        end = time.monotonic() + {seconds}
        while not heard and time.monotonic() < end:
            time.sleep(0.005)
    def holding(parameters):
        if next(calls) == {number}:
            hold()
        real(parameters)
    step.sum_gradients = holding
"""


def start_and_hold(number: int, command: list[str], folder: Path) -> "subprocess.Popen[str]":
    """Two processes, returned when the second is in its step ``number``, from 0, where it stays until SIGTERM.

    The first one is in the same step, and waits for the gradients of the second.
    """
    held = folder / "held"
    held.unlink(missing_ok=True)
    (folder / "shim").mkdir(exist_ok=True)
    (folder / "shim" / "sitecustomize.py").write_text(HOLD.format(held=str(held), seconds=SECONDS, number=number))
    process = start(2, command, folder / "shim")
    end = time.monotonic() + SECONDS
    while not held.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    return process


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(place: Path, whole: Path, tmp_path: Path) -> None:
    """Killed in the second step, before the first checkpoint, and in the last one, of the second epoch."""
    output = tmp_path / "out"
    for number in (1, 7):
        kill_all(start_and_hold(number, words(place, output, model="dropout"), tmp_path))
        assert len(losses(output)) == number
        assert not json.loads((output / "run.json").read_text())["finished"]
    code, out, err = finish(start(2, words(place, output, model="dropout")))
    assert code == 0, err
    assert f"going on from step 6 of {STEPS}" in out
    assert_same_bits(output, whole)
    assert_same_bits(last_checkpoint(output), last_checkpoint(whole))
    assert losses(output) == losses(whole)


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began_and_two_with_what_one_began(
    place: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    kill_all(start_and_hold(4, words(place, two, model="dropout"), tmp_path))
    assert main(words(place, two, model="dropout")) == 0
    said = capsys.readouterr().out
    assert f"going on from step 4 of {STEPS}" in said
    assert "the number of processes was 2 and is 1: batches and negatives stay the same" in said
    assert_trained_alike(two, whole, place / "dropout")

    def fail_after_step_4(_: Setup, progress: TrainingProgress, *__: Any) -> None:
        if progress.step == 4:
            raise ZeroDivisionError

    with monkeypatch.context() as failing:
        failing.setattr("biencoder.training.steps.loop.count_or_stop", fail_after_step_4)
        with pytest.raises(ZeroDivisionError):
            main(words(place, one, model="dropout"))
    code, out, err = finish(start(2, words(place, one, model="dropout")))
    assert code == 0, err
    assert out.count("the number of processes was 1 and is 2") == 1
    assert_trained_alike(one, whole, place / "dropout")


@pytest.mark.slow
def test_all_ranks_stop_after_the_same_step_and_go_on(place: Path, whole: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun, which passes it on; each rank hears it at a moment of its own."""
    output = tmp_path / "out"
    process = start_and_hold(2, words(place, output, model="dropout", save_steps=100), tmp_path)
    process.send_signal(signal.SIGTERM)
    _, _, err = finish(process)
    [line] = [line for line in err.splitlines() if line.startswith("biencoder: stopped by SIGTERM after step ")]
    stopped = int(line.split()[6])
    assert stopped == 3
    assert line.endswith(f"step-{stopped:08d} holds. To continue, run the same torchrun command again")
    assert metrics(output)[-1]["step"] == stopped
    code, out, err = finish(start(2, words(place, output, model="dropout", save_steps=100)))
    assert code == 0, err
    assert f"going on from step {stopped} of {STEPS}" in out
    assert_same_bits(output, whole)
    assert losses(output) == losses(whole)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"batch_size": -4}, "--batch-size must be at least 1, not -4"),
        ({"train_data": "missing.jsonl"}, "training data missing.jsonl does not exist"),
    ],
)
def test_bad_input_is_one_line_of_ours(mistake: dict[str, Any], message: str, place: Path, tmp_path: Path) -> None:
    code, out, err = finish(start(2, words(place, tmp_path / "out", **mistake)))
    assert (code, out) == (1, "")
    assert errors_of_ours(err) == [f"biencoder: error: {message}"]
    assert f"traceback : {message}" in err  # torchrun's last words
    assert list(tmp_path.iterdir()) == []


UNLUCKY = """
import os
if os.environ.get("RANK") == "1":
    from biencoder.model.encoder import Encoder
    from biencoder.training.steps import train_step as step
    sum_gradients, steps, calls, forward = step.sum_gradients, iter(range(10**6)), iter(range(10**6)), Encoder.forward
    def spoiling(parameters):
        if next(steps) == 2:
            next(p for p in parameters if p.grad is not None).grad.fill_(float("nan"))
        sum_gradients(parameters)
    def starving(encoder, batch):
        if encoder.training and batch.input_ids.numel() > 300 and next(calls) >= 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(encoder, batch)
    step.sum_gradients, Encoder.forward = spoiling, starving
"""


def test_what_befalls_one_rank_all_of_them_bear_alike(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its part of a gradient is no number, later its memory runs out: all skip, then all halve, and none waits."""
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim" / "sitecustomize.py").write_text(UNLUCKY)
    asked: dict[str, Any] = {"on_nonfinite": "skip", "memory_budget": "2GB", "save_steps": 100}
    asked["cluster_size"] = 1  # which texts share a chunk decides how far chunks are halved
    code, out, err = finish(start(2, words(place, tmp_path / "two", **asked), tmp_path / "shim"))
    assert code == 0, err
    assert err.count("Skipped: 1 in a row, at most 10; 1 in all") == 1
    said = [line for line in out.splitlines() if "memory ran out" in line]
    assert said
    state = json.loads((last_checkpoint(tmp_path / "two") / "state.json").read_text())
    assert state["skipped"] == {"total": 1, "in_a_row": 0, "overflows": 0}
    assert state["tokens"]["chunk"] <= 300
    assert f"up to {state['tokens']['chunk']:,} tokens" in said[-1]

    steps = iter(range(STEPS))

    def spoiling(parameters: list[nn.Parameter]) -> None:
        if next(steps) == 2:
            parameters[0].grad = torch.full_like(parameters[0], float("nan"))

    monkeypatch.setattr("biencoder.training.steps.train_step.sum_gradients", spoiling)
    assert main(words(place, tmp_path / "one", **asked)) == 0
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)


FAIL = """
import os, signal
if os.environ.get("RANK") == "1":
    from biencoder.errors import TrainingError
    from biencoder.training.steps import train_step as step
    real, calls = step.sum_gradients, iter(range(10**6))
    def failing(parameters):
        if next(calls) == 2:
            {what}
        real(parameters)
    step.sum_gradients = failing
"""


def fail(what: str, place: Path, folder: Path) -> tuple[int, str, str]:
    """A run, long but for that rank 1 does ``what`` in its third step."""
    (folder / "shim").mkdir()
    (folder / "shim" / "sitecustomize.py").write_text(FAIL.format(what=what))
    return finish(start(2, words(place, folder / "out", epochs=100_000), folder / "shim"))


def test_a_rank_that_fails_stops_all_with_one_error(place: Path, tmp_path: Path) -> None:
    code, _, err = fail('raise TrainingError("boom")', place, tmp_path)
    assert code == 1
    assert errors_of_ours(err) == ["biencoder: error: boom"]
    assert "]: Traceback" not in err  # of a rank; torchrun prints one of its own
    assert [record["step"] for record in metrics(tmp_path / "out")] == [0, 1, 2]


@pytest.mark.slow
def test_a_rank_that_is_killed_stops_all_and_is_named(place: Path, tmp_path: Path) -> None:
    code, _, err = fail("os.kill(os.getpid(), signal.SIGKILL)", place, tmp_path)
    assert code == 1
    assert "]: Traceback" not in err
    assert "Signal 9 (SIGKILL) received" in err  # torchrun's words; it may end rank 0 before that has any
    for line in errors_of_ours(err):
        assert line.startswith(
            "biencoder: error: another process of this run was killed, perhaps because memory ran out"
        )
