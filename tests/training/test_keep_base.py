"""What a run keeps of its base, and what it says about data that it was not trained on."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import stop_in_step
from safetensors.numpy import load_file
from tiny import WORDS, random_texts, tiny_model

from biencoder import Encoder, evaluate
from biencoder.config import TrainConfig
from biencoder.data.data_sets import read_data_sets
from biencoder.data.evaluation.general_english import GENERAL_ENGLISH, general_english
from biencoder.data.files.beir import Collection, load_collection
from biencoder.errors import UserError
from biencoder.retrieval.comparing.comparison import compare, comparison_json
from biencoder.retrieval.evaluate import Evaluation
from biencoder.training import run
from biencoder.training.keep_base import SHARES, keep_base
from biencoder.training.preparation import prepare_encoder, set_up
from biencoder.training.run import train
from biencoder.training.setup import Setup
from biencoder.training.state.checkpoint import newest_checkpoint
from biencoder.training.steps import evaluation, start


def write_collection(folder: Path, first: int) -> Path:
    """40 documents, and 12 queries of two words of theirs, which other documents hold too."""
    (folder / "qrels").mkdir(parents=True)
    texts = [f"{WORDS[first + i]} {WORDS[first + i + 1]} {WORDS[i % 7]}" for i in range(40)]
    corpus = [json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    queries = [json.dumps({"_id": f"q{i}", "text": f"{WORDS[first + i]} {WORDS[i % 7]}"}) for i in range(12)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text("\n".join(queries))
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(12)))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, training data, a folder to evaluate on and two guards."""
    folder = tmp_path_factory.mktemp("place")
    tiny_model(folder / "base", dropout=True)
    rows = [
        {"query": f"{WORDS[i]} {WORDS[i + 100]}", "pos": [f"{WORDS[i]} {text}"]}
        for i, text in enumerate(random_texts(40, longest=6))
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, name in enumerate(("eval", "guard-1", "guard-2")):
        write_collection(folder / name, 40 * number)
    return folder


@pytest.fixture
def config(place: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        model=str(place / "base"),
        train_data=(place / "train.jsonl",),
        eval_data=place / "eval",
        output_dir=tmp_path / "out",
        batch_size=8,
        group_size=1,
        passage_max_len=16,
        query_max_len=16,
        learning_rate=2e-2,
        epochs=1,
        precision="fp32",
        save_steps=2,
        general_guard=False,
        cross_validate=False,
    )


def guarded(config: TrainConfig, place: Path) -> TrainConfig:
    return replace(config, guard_data=(place / "guard-1", place / "guard-2"))


def report(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "eval.json").read_text())
    return read


def vectors(folder: Path | str, like: Path) -> np.ndarray:
    settings = Encoder.load(like).settings
    encoder = Encoder.load(
        folder, pooling=settings.pooling or "auto", normalize=settings.normalize, max_length=settings.max_length
    )
    return encoder.encode(random_texts(10))


def test_all_of_the_base_none_of_it_and_a_part(config: TrainConfig, tmp_path: Path) -> None:
    folders = {}
    for share in (0.0, 0.3, 1.0):
        folders[share] = tmp_path / f"kept-{share}"
        assert train(replace(config, keep_base=share, output_dir=folders[share])) is not None
    none, part, everything = (dict(load_file(folder / "model.safetensors")) for folder in folders.values())
    base = load_file(Path(config.model) / "model.safetensors")
    for name, tensor in part.items():
        np.testing.assert_allclose(tensor, 0.3 * base[name] + 0.7 * none[name], rtol=1e-6, atol=1e-7)
        assert np.array_equal(everything[name], base[name])
    of_base, of_tuned = vectors(config.model, folders[1.0]), vectors(folders[0.0], folders[0.0])
    np.testing.assert_allclose(vectors(folders[1.0], folders[1.0]), of_base, atol=1e-6)
    assert np.abs(of_tuned - of_base).max() > 1e-2

    best = load_file(folders[0.0] / "checkpoints" / f"best-{report(folders[0.0])['after_step']:08d}/model.safetensors")
    assert all(np.array_equal(none[name.removeprefix("backbone.")], best[name]) for name in best)
    one, other = (newest_checkpoint(folders[share] / "checkpoints") for share in (0.0, 0.3))
    assert one is not None
    assert other is not None
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_what_is_reported_is_the_averaged_model(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(replace(config, keep_base=0.5))
    assert result is not None
    assert config.eval_data is not None
    found = report(config.output_dir)
    saved = evaluate(Encoder.load(config.output_dir), load_collection(config.eval_data))
    assert found["after"]["metrics"] == saved.metrics == result.after.metrics
    assert found["keep_base"] == 0.5
    assert found["tuned_alone"]["metrics"] != saved.metrics
    said = f"alone has {found['tuned_alone']['metrics']['ndcg@10']:.4f} ndcg@10"
    assert said in capsys.readouterr().out
    assert said in (config.output_dir / "README.md").read_text()


def test_a_killed_run_that_keeps_of_its_base_ends_in_the_same_model(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, keep_base=0.4)
    whole = replace(config, output_dir=tmp_path / "whole")
    train(whole)
    stop_in_step(4, config, monkeypatch)
    with pytest.raises(UserError, match=r"--keep-base was 0\.4 and is 0\.5"):
        train(replace(config, keep_base=0.5))
    train(config)
    one, other = (load_file(each.output_dir / "model.safetensors") for each in (config, whole))
    assert all(np.array_equal(tensor, other[name]) for name, tensor in one.items())
    assert report(config.output_dir) == report(whole.output_dir)


def test_guard_data_are_compared_everywhere(
    config: TrainConfig, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(guarded(config, place))
    assert result is not None
    out, card = capsys.readouterr().out, (config.output_dir / "README.md").read_text()
    found = report(config.output_dir)["guards"]
    settings = Encoder.load(config.output_dir).settings
    base = Encoder.load(
        config.model, pooling=settings.pooling or "auto", normalize=settings.normalize, max_length=settings.max_length
    )
    assert list(found) == [str(place / "guard-1"), str(place / "guard-2")]
    for folder, figures in found.items():
        collection = load_collection(Path(folder))
        before, after = evaluate(base, collection), evaluate(Encoder.load(config.output_dir), collection)
        assert figures["before"]["metrics"] == before.metrics == result.guards_before[folder].metrics
        assert figures["after"]["metrics"] == after.metrics == result.guards_after[folder].metrics
        first, last = guard_lines(config.output_dir)
        assert (first["guards"][folder], last["guards"][folder]) == (before.metrics, after.metrics)
        assert figures["comparison"] == comparison_json(compare(before, after))
        deciding = figures["comparison"][0]
        row = [folder, "ndcg@10", f"{deciding['before']:.4f}", f"{deciding['after']:.4f}"]
        assert any(line.split()[:4] == row for line in out.splitlines())
        named = Path(folder).name  # a card names no path
        assert "| " + " | ".join([named, *row[1:]]) in card
        assert f"On {named}" in card


def test_auto_keeps_what_a_guard_asks_for(config: TrainConfig, place: Path, tmp_path: Path) -> None:
    chosen, alone = (replace(guarded(config, place), output_dir=tmp_path / name) for name in ("chosen", "alone"))
    result = train(chosen)
    train(replace(alone, keep_base=0.0))
    assert result is not None
    found = report(chosen.output_dir)
    share = found["keep_base"]
    assert share in SHARES
    assert {row["share"] for row in found["keep_base_tried"]} >= {0.0, share}
    folders = (place / "base", alone.output_dir, chosen.output_dir)
    base, tuned, saved = (load_file(folder / "model.safetensors") for folder in folders)
    for name, tensor in saved.items():
        np.testing.assert_allclose(tensor, share * base[name] + (1 - share) * tuned[name], rtol=1e-6, atol=1e-7)
    encoder = Encoder.load(chosen.output_dir)
    for folder, after in result.guards_after.items():
        assert after.metrics == evaluate(encoder, load_collection(Path(folder))).metrics
    assert result.after.metrics == evaluate(encoder, load_collection(place / "eval")).metrics


# What a guard loses and what the evaluation data gain with each share of the base, and what is chosen.
CHOICES: list[tuple[Callable[[float], float], Callable[[float], float], float, str]] = [
    (lambda share: 0.004 * (1 - share), lambda share: 0.2 - 0.01 * share, 0.0, "It keeps none of the base"),
    (lambda share: 0.04 * (1 - share) ** 2, lambda share: 0.2 + 0.01 * share, 0.7, "It keeps 0.7 of the base"),
    (
        lambda share: 0.12 * (1 - share) ** 2 - 0.065 * (1 - share),
        lambda share: 0.2 - share / 9,
        0.4,
        "It keeps 0.4 of the base",
    ),
    (lambda share: 0.04 * (1 - share) ** 2, lambda share: 0.2 * (1 - share), 0.1, "A share of 0.7 would have lost"),
    (lambda share: 0.5 - 0.01 * share, lambda share: 0.2 * (1 - share**4), 0.4, "A share of 0.9 would have lost"),
    (lambda share: 0.04 * (1 - share), lambda share: -0.1 * (1 - share), 0.9, "It keeps 0.9 of the base"),
]


@pytest.mark.parametrize(("loss", "gain", "share", "words"), CHOICES)
def test_the_least_share_that_the_guard_accepts_unless_too_much_of_the_gain_goes(
    loss: Callable[[float], float],
    gain: Callable[[float], float],
    share: float,
    words: str,
    config: TrainConfig,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measured(value: float) -> Evaluation:
        return Evaluation({"ndcg@10": value}, {}, 1, 1, "")

    examples = read_data_sets(config.data_sets, "stop")
    encoder, resolved = prepare_encoder(guarded(config, place), len(examples))
    setup, progress = set_up(resolved, encoder, examples, load_collection(place / "eval"))
    progress.before, progress.best = measured(0.5), measured(0.5 + gain(0.0))
    progress.guards_before = dict.fromkeys(setup.guards, measured(0.4))
    watched = next(encoder.parameters())
    before = watched.detach().clone()
    with torch.no_grad():
        watched.add_(1.0)

    def of_the_weights(setup: Setup, collection: Collection) -> Evaluation:
        at = 1 - float((watched.detach() - before).mean())
        return measured(0.5 + gain(at) if collection is setup.collection else 0.4 - loss(at))

    monkeypatch.setattr("biencoder.training.keep_base.evaluate_on", of_the_weights)
    kept = keep_base(setup, progress)
    assert kept.share == share
    assert words in kept.sentences()[0]


def test_auto_keeps_nothing_where_no_guard_asks(config: TrainConfig) -> None:
    train(config)
    found = report(config.output_dir)
    assert found["keep_base"] == 0.0
    assert "keep_base_tried" not in found


def test_general_english_is_a_guard_that_nobody_names(
    config: TrainConfig, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(replace(config, general_guard=True, guard_data=(place / "guard-1",), max_steps=2))
    assert result is not None
    assert list(result.guards_after) == [GENERAL_ENGLISH, str(place / "guard-1")]
    after = evaluate(Encoder.load(config.output_dir, max_length=16), general_english())
    assert result.guards_after[GENERAL_ENGLISH].metrics == after.metrics
    assert f"On {GENERAL_ENGLISH}" in capsys.readouterr().out


@pytest.mark.parametrize("step", [1, 3])  # before the first checkpoint, and after it
def test_a_killed_run_keeps_what_the_base_is_worth_on_guard_data(
    config: TrainConfig, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = guarded(config, place)
    whole = replace(config, output_dir=tmp_path / "whole")
    train(whole)
    stop_in_step(step + 1, config, monkeypatch)
    steps: list[int] = []

    def noted(setup: Setup, step: int, known: Mapping[str, Evaluation] | None = None) -> dict[str, Evaluation]:
        lines = (config.output_dir / "metrics.jsonl").read_text().splitlines()
        steps.append(max(json.loads(line)["step"] for line in lines))
        return evaluation.evaluate_guards(setup, step, known)

    for module in (start, run):
        monkeypatch.setattr(module, "evaluate_guards", noted)
    train(config)
    assert steps == ([0, 5] if step == 1 else [5])  # the base's figures come from the checkpoint
    assert report(config.output_dir) == report(whole.output_dir)
    of_guards = [guard_lines(each.output_dir) for each in (config, whole)]
    assert of_guards[0] == of_guards[1]
    assert [line["step"] for line in of_guards[0]] == [0, 5]


def guard_lines(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if '"guards"' in line]


def test_other_guard_data_are_another_run(
    config: TrainConfig, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "guard"
    shutil.copytree(place / "guard-1", folder)
    config = replace(config, guard_data=(folder,))
    stop_in_step(4, config, monkeypatch)
    (folder / "qrels" / "test.tsv").write_text("q1\td2\t1\n")
    with pytest.raises(UserError, match="the evaluation data have changed"):
        train(config)
