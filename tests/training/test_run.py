"""A training run as a whole: what it leaves behind, and that being killed and resumed leaves the same."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_points import AtCall, AtOperation
from killed import COMMAND, kill_at
from runs import stop_in_step
from safetensors.numpy import load_file
from tiny import WORDS, tiny_model

from biencoder import Encoder
from biencoder.config import MiningOptions, TrainConfig
from biencoder.data.evaluation.held_out import hold_out
from biencoder.data.table import ExampleTable
from biencoder.errors import TrainingError, UserError
from biencoder.training.gradcache import StepLosses, accumulate_gradients
from biencoder.training.run import train
from biencoder.training.sources import negatives
from biencoder.training.state.checkpoint import newest_checkpoint
from biencoder.training.steps import smaller_chunks

ROWS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), dropout=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries of two words; the passage that answers one repeats them among others."""
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    with path.open("w") as file:
        for i in range(ROWS):
            query = f"{WORDS[i]} {WORDS[i + 100]}"
            noise = [" ".join(draw.choice(WORDS, size=5)) for _ in range(3)]
            row = {"query": query, "pos": [f"{query} {noise[0]}"], "neg": noise[1:] if i % 3 else []}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def config(model: Path, data: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        model=str(model),
        train_data=(data,),
        output_dir=tmp_path / "out",
        batch_size=8,
        group_size=3,
        passage_max_len=32,
        query_max_len=16,
        learning_rate=1e-3,
        precision="fp32",
        epochs=2,
        eval_steps=7,
        save_steps=3,
        general_guard=False,
        cross_validate=False,
    )


def weights(folder: Path) -> dict[str, np.ndarray]:
    return dict(load_file(folder / "model.safetensors"))


def assert_same_model(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        assert np.array_equal(first[name], second[name]), name


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_a_run_leaves_a_model_and_its_reports(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(config)
    assert result is not None
    names = {path.name for path in config.output_dir.iterdir()}
    assert names >= {"config.yaml", "run.json", "metrics.jsonl", "eval.json", "README.md", "checkpoints"}
    assert names >= {"report.json", "report.html"}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling", "2_Normalize"}
    assert not [name for name in names if name.endswith((".tmp", ".bin", ".pt", ".pth"))]
    steps = [step for step, _ in losses(config.output_dir)]
    assert steps == list(range(1, result.steps + 1))
    report = json.loads((config.output_dir / "eval.json").read_text())
    assert report["before"]["metrics"]["ndcg@10"] == result.before.metrics["ndcg@10"]
    assert report["after"]["metrics"]["ndcg@10"] == result.after.metrics["ndcg@10"]
    assert Encoder.load(config.output_dir).encode(["word1 word2"]).shape == (1, 32)
    printed = capsys.readouterr().out
    assert "held-out" in printed
    assert "before" in printed
    assert "biencoder search --model" in printed


def test_the_loss_falls_and_the_model_gets_better(config: TrainConfig) -> None:
    result = train(replace(config, epochs=10, learning_rate=3e-3))
    assert result is not None
    history = [loss for _, loss in losses(config.output_dir)]
    assert np.mean(history[-5:]) < 0.7 * np.mean(history[:5])
    assert result.after.metrics["ndcg@10"] > result.before.metrics["ndcg@10"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(config: TrainConfig, tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in "abc")
    train(replace(config, output_dir=one))
    train(replace(config, output_dir=two))
    train(replace(config, output_dir=three, seed=7))
    assert_same_model(one, two)
    assert any(not np.array_equal(value, weights(three)[name]) for name, value in weights(one).items())


@pytest.mark.parametrize("step", [1, 4, 8, 11])  # before the first checkpoint, after it, across the epoch, near the end
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = replace(config, output_dir=tmp_path / "whole")
    train(whole)
    stop_in_step(step + 1, config, monkeypatch)
    train(config)
    assert_same_model(config.output_dir, whole.output_dir)
    assert losses(config.output_dir) == losses(whole.output_dir)
    for name in ("eval.json", "report.json"):
        assert (config.output_dir / name).read_bytes() == (whole.output_dir / name).read_bytes()
    one, other = (newest_checkpoint(c.output_dir / "checkpoints") for c in (config, whole))
    assert one is not None
    assert other is not None
    moments, expected = (load_file(path / "optimizer.safetensors") for path in (one, other))
    assert all(np.array_equal(moments[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_killed_process_ends_in_the_same_weights(config: TrainConfig, tmp_path: Path, minilm: str) -> None:
    """SIGKILL, a real process, the real model, dropout on, some chunks replayed."""
    settings = replace(config, model=minilm, group_size=1, save_steps=2, precision="auto", memory_budget=40_000_000)
    whole = replace(settings, output_dir=tmp_path / "whole")
    subprocess.run([sys.executable, "-m", "biencoder", *command(whole)], check=True, capture_output=True)
    for fault, step in (
        (AtCall("biencoder.training.steps.train_step", "sum_gradients", 3), 2),  # in the fourth step
        (AtOperation(0, "torn", "fsync", "checkpoints/.step-00000006.tmp/model.safetensors"), 4),
        (AtCall("biencoder.training.steps.loop", "log_step", 4), 8),  # the weights are new, their line is not written
    ):
        kill_at(fault, settings.output_dir, COMMAND, *command(settings))
        newest = newest_checkpoint(settings.output_dir / "checkpoints")
        assert newest is not None
        assert newest.name == f"step-{step:08d}"
    subprocess.run([sys.executable, "-m", "biencoder", *command(settings)], check=True, capture_output=True)
    assert_same_model(settings.output_dir, whole.output_dir)
    assert losses(settings.output_dir) == losses(whole.output_dir)


def command(config: TrainConfig) -> list[str]:
    path = config.output_dir.parent / f"{config.output_dir.name}.yaml"
    path.write_text(config.to_yaml())
    return ["train", "--config", str(path)]


def test_a_finished_run_says_so_and_changes_nothing(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    train(config)
    before = {path: path.stat().st_mtime_ns for path in config.output_dir.rglob("*")}
    capsys.readouterr()
    assert train(config) is None
    assert "finished: nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in config.output_dir.rglob("*")} == before


def test_another_configuration_or_other_data_is_refused_by_name(
    config: TrainConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_step(6, config, monkeypatch)
    with pytest.raises(UserError, match=r"--learning-rate was 0\.001 and is 0\.002"):
        train(replace(config, learning_rate=2e-3))
    other = tmp_path / "other.jsonl"
    other.write_text("".join(data.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="training data have changed"):
        train(replace(config, train_data=(other,)))
    train(replace(config, save_steps=5, keep_checkpoints=4))  # what computes nothing may change


def test_a_folder_with_other_things_is_refused_and_left_alone(config: TrainConfig) -> None:
    config.output_dir.mkdir()
    (config.output_dir / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds other things \(thesis\.txt\)"):
        train(config)
    assert [path.name for path in config.output_dir.iterdir()] == ["thesis.txt"]


def test_resume_never_refuses_a_folder_that_is_not_empty(config: TrainConfig) -> None:
    train(config)
    with pytest.raises(UserError, match="--resume is never"):
        train(replace(config, resume="never"))


def test_the_best_evaluation_is_kept(config: TrainConfig) -> None:
    """A rate that ruins the model late: what is saved is what was best, and the report says when that was."""
    result = train(replace(config, epochs=6, eval_steps=2, learning_rate=0.05, schedule="cosine"))
    assert result is not None
    lines = [json.loads(line) for line in (config.output_dir / "metrics.jsonl").read_text().splitlines()]
    evaluated = {line["step"]: line["evaluation"]["ndcg@10"] for line in lines if "evaluation" in line}
    trained = {step: value for step, value in evaluated.items() if step > 0}
    best = max(trained, key=lambda step: (trained[step], -step))
    report = json.loads((config.output_dir / "eval.json").read_text())
    assert report["after_step"] == best
    assert report["after"]["metrics"]["ndcg@10"] == trained[best]


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(*args: Any, **kwargs: Any) -> StepLosses:
        result = accumulate_gradients(*args, **kwargs)
        taken = config.output_dir / "metrics.jsonl"
        return replace(result, total=result.total * float("nan")) if len(losses(taken.parent)) == 4 else result

    monkeypatch.setattr(smaller_chunks, "accumulate_gradients", poisoned)
    with pytest.raises(TrainingError, match="step 5: the loss is nan"):
        train(config)
    newest = newest_checkpoint(config.output_dir / "checkpoints")
    assert newest is not None
    assert newest.name.endswith("3")


@pytest.mark.parametrize(
    "said",
    [
        "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use_deterministic_alg...'",
        "this operation is not deterministic because it uses CuBLAS; set CUBLAS_WORKSPACE_CONFIG=:4096:8",
    ],
)
def test_an_operation_without_fixed_bits_is_named(
    said: str, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> StepLosses:
        raise RuntimeError(said)

    monkeypatch.setattr(smaller_chunks, "accumulate_gradients", refuse)
    with pytest.raises(UserError, match=f"--deterministic: {said[:30]}"):
        train(replace(config, deterministic=True))
    with pytest.raises(RuntimeError, match=said[:30]):
        train(replace(config, output_dir=tmp_path / "other"))


def test_unnormalised_vectors_have_temperature_one(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    train(replace(config, normalize=False))
    assert "the temperature is 1.0" in capsys.readouterr().out
    assert "temperature: 1.0" in (config.output_dir / "config.yaml").read_text()


def test_prompts_are_kept_in_the_model(config: TrainConfig) -> None:
    train(replace(config, query_prompt="word7 ", passage_prompt="word8 "))
    encoder = Encoder.load(config.output_dir)
    assert np.array_equal(encoder.encode_queries(["word1"]), encoder.encode(["word7 word1"]))
    assert np.array_equal(encoder.encode_passages(["word1"]), encoder.encode(["word8 word1"]))


def test_every_loss_at_once_learns_and_is_reported(config: TrainConfig, model: Path) -> None:
    asked = replace(config, epochs=8, two_way=True, dims=(16, 8), guide=str(model), guide_margin=0.01)
    result = train(asked)
    assert result is not None
    found = [loss for _, loss in losses(asked.output_dir)]
    assert np.mean(found[-7:]) < np.mean(found[:7])
    report = json.loads((asked.output_dir / "eval.json").read_text())
    measures = {each["measure"]: each for each in report["comparison"]}
    assert {"ndcg@10", "ndcg@10, 16 dimensions", "ndcg@10, 8 dimensions"} <= measures.keys()
    assert "| ndcg@10, 8 dimensions |" in (asked.output_dir / "README.md").read_text()
    resumed = json.loads((asked.output_dir / "run.json").read_text())["config"]
    assert resumed["dims"] == [32, 16, 8]  # all of the model's are trained too


def test_a_guide_of_other_weights_is_another_run(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    guided = replace(config, guide=str(tiny_model(tmp_path / "guide", seed=1)))
    stop_in_step(6, guided, monkeypatch)
    tiny_model(tmp_path / "guide", seed=2)
    with pytest.raises(UserError, match="the guide's weights or settings have changed"):
        train(guided)


def test_nested_dimensions_beyond_the_models(config: TrainConfig) -> None:
    with pytest.raises(UserError, match=r"--dims 64: .* makes 32 dimensions"):
        train(replace(config, dims=(64, 8)))
    assert not config.output_dir.exists()


@pytest.fixture
def any_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model's scores lie so close together that none is clearly below the positive's."""
    monkeypatch.setattr(negatives, "MiningOptions", partial(MiningOptions, max_share=1.5))


@pytest.mark.usefixtures("any_score")
def test_mined_negatives_are_other_rows_passages_and_never_answers(config: TrainConfig, data: Path) -> None:
    asked = replace(config, mine_negatives=2, refresh_negatives=1)
    assert train(asked) is not None
    folder = asked.output_dir / "negatives"
    first, second = sorted(folder.iterdir())
    assert (first.name, second.name) == ("step-00000000.npy", f"step-{len(losses(asked.output_dir)) // 2:08d}.npy")
    mined = [np.load(path) for path in (first, second)]
    assert all((each >= 0).any(axis=1).mean() > 0.9 for each in mined)
    assert (mined[0] != mined[1]).any()  # the model has learnt in between
    table = ExampleTable.from_files([data])
    held = hold_out(table, seed=asked.seed, queries=10, passages=100).train
    for row in range(len(held)):
        texts = [held.passage(int(place)) for place in mined[0][row] if place >= 0]
        assert not set(texts) & set(held[row].positives + held[row].negatives)
    assert train(replace(asked, output_dir=asked.output_dir.parent / "plain", mine_negatives=0, refresh_negatives=None))
    assert losses(asked.output_dir) != losses(asked.output_dir.parent / "plain")


@pytest.mark.usefixtures("any_score")
@pytest.mark.parametrize("killed_in", [2, 9])
def test_a_run_with_mined_negatives_resumes_in_the_same_bits(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, killed_in: int
) -> None:
    asked = replace(config, mine_negatives=2, refresh_negatives=1)
    whole = replace(asked, output_dir=asked.output_dir.parent / "whole")
    train(whole)
    stop_in_step(killed_in + 1, asked, monkeypatch)
    train(asked)
    assert losses(asked.output_dir) == losses(whole.output_dir)
    assert_same_model(asked.output_dir, whole.output_dir)


@pytest.mark.parametrize("killed_in", [2, 9])
def test_a_run_over_clusters_resumes_in_the_same_bits(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, killed_in: int
) -> None:
    asked = replace(config, cluster_size=4)
    whole, plain = (replace(asked, output_dir=asked.output_dir.parent / name) for name in ("whole", "plain"))
    train(whole)
    train(replace(plain, cluster_size=1))
    stop_in_step(killed_in + 1, asked, monkeypatch)
    train(asked)
    assert losses(asked.output_dir) == losses(whole.output_dir) != losses(plain.output_dir)
    assert_same_model(asked.output_dir, whole.output_dir)


def test_mined_negatives_that_are_gone_stop_a_resumed_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(config, mine_negatives=2)
    stop_in_step(6, asked, monkeypatch)
    shutil.rmtree(asked.output_dir / "negatives")
    with pytest.raises(UserError, match=r"step-00000000\.npy: is missing"):
        train(asked)


def single_texts(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    texts = [" ".join(WORDS[i : i + 5]) for i in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def collection(folder: Path) -> Path:
    (folder / "beir" / "qrels").mkdir(parents=True)
    for name, prefix in (("corpus", "d"), ("queries", "q")):
        rows = [{"_id": f"{prefix}{i}", "text": " ".join(WORDS[i : i + 6])} for i in range(20)]
        (folder / "beir" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(20))
    (folder / "beir" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder / "beir"


def test_texts_alone_train_by_the_difference_that_dropout_makes(config: TrainConfig, tmp_path: Path) -> None:
    asked = replace(config, train_data=(single_texts(tmp_path),), eval_data=collection(tmp_path), epochs=4)
    assert train(asked) is not None
    found = [loss for _, loss in losses(asked.output_dir)]
    assert found[0] > 0.1  # the two vectors of a text are not the same
    assert np.mean(found[-7:]) < np.mean(found[:7])


def test_texts_alone_need_dropout_and_other_data_to_be_judged_by(config: TrainConfig, tmp_path: Path) -> None:
    asked = replace(config, train_data=(single_texts(tmp_path),))
    with pytest.raises(UserError, match="name a BEIR folder with --eval-data"):
        train(asked)
    with pytest.raises(UserError, match=r"this model has no dropout; give --dropout 0\.1"):
        train(replace(asked, eval_data=collection(tmp_path), dropout=0.0))
    assert not config.output_dir.exists()
