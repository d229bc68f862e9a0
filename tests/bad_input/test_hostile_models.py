"""Model folders of strangers who mean harm: no command runs what is theirs, and what cannot be ignored is refused."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import GOOD, Refused, with_flag
from tiny import tiny_cross_encoder

from biencoder.cli import main

Change = Callable[[Path], object]


class Payload:
    """What runs when it is unpickled: a file appears."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch payload",)


def change_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def pickles(model: Path) -> None:
    """Under every name that some tool reads."""
    for name in ("pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "training_args.bin", "tokenizer.pkl"):
        (model / name).write_bytes(pickle.dumps(Payload()))
    (model / ".metadata").write_bytes(pickle.dumps(Payload()))  # of a distributed checkpoint
    (model / "__0_0.distcp").write_bytes(pickle.dumps(Payload()))


def only_pickles(model: Path) -> None:
    pickles(model)
    (model / "model.safetensors").unlink()


def index_of_pickles(model: Path) -> None:
    only_pickles(model)
    weights = {"weight_map": {"embeddings.word_embeddings.weight": "pytorch_model.bin"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(weights))
    (model / "other.safetensors").touch()


def index_out_of_the_folder(model: Path) -> None:
    shutil.move(model / "model.safetensors", model.parent / "outside.safetensors")
    weights = {"weight_map": {"embeddings.word_embeddings.weight": "../outside.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(weights))
    (model / "other.safetensors").touch()


def code(model: Path, **changes: Any) -> None:
    """A module that leaves the file when it is imported, named by everything that can name one."""
    (model / "evil.py").write_text("open('payload', 'w').close()\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    mapped = {name: f"evil.{name}" for name in names} | {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}
    nested = {"text_config": {"model_type": "bert", "auto_map": mapped, "trust_remote_code": True}}
    change_json(model / "config.json", auto_map=mapped, trust_remote_code=True, **nested, **changes)
    change_json(model / "tokenizer_config.json", auto_map=mapped, trust_remote_code=True)


def code_of_an_unknown_kind(model: Path) -> None:
    code(model, model_type="evil")


def kernels(model: Path) -> None:
    name = "kernels-community/evil"
    inner = {"_attn_implementation": name, "attn_implementation": name, "_attn_implementation_internal": name}
    change_json(model / "config.json", **inner, _experts_implementation=name, text_config=inner)


def other_files(model: Path) -> None:
    """Settings that name files to open."""
    (model.parent / "secret.txt").write_text("word1\n")
    change_json(
        model / "config.json",
        transformers_weights="adapter_model.bin",
        configuration_files=["config.1.0.0.json"],
        name_or_path="../secret.txt",
    )
    (model / "config.1.0.0.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}')
    change_json(model / "tokenizer_config.json", vocab_file="../secret.txt", tokenizer_file="../secret.txt")


def foreign_module(model: Path) -> None:
    code(model)
    (model / "modules.json").write_text('[{"type": "evil.Transformer", "path": ""}, {"type": "evil.Evil", "path": ""}]')


def module_out_of_the_folder(model: Path) -> None:
    (model.parent / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (model / "modules.json").write_text('[{"type": "a.Transformer"}, {"type": "a.Pooling", "path": ".."}]')


def weights_behind_a_link(model: Path) -> None:
    shutil.move(model / "model.safetensors", model.parent / "outside.safetensors")
    (model / "model.safetensors").symlink_to("../outside.safetensors")


def settings_behind_a_link(model: Path) -> None:
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").symlink_to("/etc/hostname")


def folder_behind_a_link(model: Path) -> None:
    (model / "1_Pooling").symlink_to("/etc")


def a_circle(model: Path) -> None:
    (model / "vocab.txt").symlink_to("vocab.txt")


def everything(model: Path) -> None:
    for change in (kernels, code_of_an_unknown_kind, other_files, only_pickles, settings_behind_a_link):
        change(model)


REFUSED: dict[str, tuple[Change, str]] = {
    "only pickles": (
        only_pickles,
        "biencoder does not read pytorch_model.bin, because a pickle can run code. To convert one, load it",
    ),
    "an index of pickles": (index_of_pickles, "names 'pytorch_model.bin', and only *.safetensors files of this folder"),
    "an index that leads out": (index_out_of_the_folder, "names '../outside.safetensors', and only *.safetensors"),
    "code of an unknown kind": (code_of_an_unknown_kind, "cannot be loaded ("),
    "weights behind a link": (weights_behind_a_link, "model.safetensors is a link that leads out of the folder"),
    "settings behind a link": (settings_behind_a_link, "1_Pooling/config.json is a link that leads out of the folder"),
    "a folder behind a link": (folder_behind_a_link, "1_Pooling is a link that leads out of the folder"),
    "links in a circle": (a_circle, "vocab.txt is a link that leads out of the folder"),
    "quantised weights": (
        lambda m: change_json(m / "config.json", quantization_config={"quant_method": "evil", "modules": ["evil"]}),
        "its weights are quantised (quantization_config in config.json), which biencoder does not handle",
    ),
    "everything": (everything, "1_Pooling/config.json is a link that leads out of the folder"),
}
ONLY_EMBEDDING: dict[str, tuple[Change, str]] = {
    "a foreign module": (foreign_module, "modules.json: the model has a Evil module, which biencoder does not run"),
    "a module that leads out": (module_out_of_the_folder, "modules.json: names the path '..', which leads out of the"),
}
IGNORED: dict[str, Change] = {"pickles": pickles, "code": code, "kernels": kernels, "other files": other_files}
USES: dict[str, tuple[list[str], str]] = {  # the words of a command, and the model in them
    **{
        name: ([name, *GOOD[name]], "model")
        for name in ("train", "evaluate", "encode", "search", "mine", "export", "merge", "check")
    },
    "evaluate --baseline": (with_flag("evaluate", "--baseline", "other"), "other"),
    "train --guide": (with_flag("train", "--guide", "other"), "other"),
    "score --reranker": (["score", *GOOD["score"]], "reranker"),
    "mine --reranker": (with_flag("mine", "--reranker", "reranker"), "reranker"),
    "score --model": (["score", "--model", "model", *GOOD["score"][2:]], "model"),
    "pairs --model": (with_flag("pairs", "--model", "model"), "model"),
}
TOKENIZER_ALONE = ("check", "pairs --model")
ABOUT_WEIGHTS = ("only pickles", "code of an unknown kind")


@pytest.fixture
def trap(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that must not appear; ``evil`` can be imported from everywhere, so that an import would succeed."""
    (place.parent / "modules").mkdir()
    (place.parent / "modules" / "evil.py").write_text("open('payload', 'w').close()\n")
    monkeypatch.syspath_prepend(str(place.parent / "modules"))
    return place / "payload"


def refusals() -> list[tuple[str, str]]:
    return [
        (kind, use)
        for kind in (*REFUSED, *ONLY_EMBEDDING)
        for use in USES
        if not (kind in ABOUT_WEIGHTS and use in TOKENIZER_ALONE)
        if not (kind in ONLY_EMBEDDING and "reranker" in use)
    ]


def test_the_trap_works(trap: Path) -> None:
    pickle.loads(pickle.dumps(Payload()))
    assert trap.exists()


@pytest.mark.parametrize(("kind", "use"), refusals())
def test_a_hostile_model_is_refused_and_nothing_of_it_runs(
    kind: str, use: str, place: Path, trap: Path, refused: Refused
) -> None:
    change, message = (REFUSED | ONLY_EMBEDDING)[kind]
    words, model = USES[use]
    change(place / model)
    refused(words, message)
    assert not trap.exists()


@pytest.mark.parametrize("use", TOKENIZER_ALONE)
@pytest.mark.parametrize("kind", ABOUT_WEIGHTS)
def test_where_the_tokenizer_alone_is_read_nothing_runs_either(kind: str, use: str, place: Path, trap: Path) -> None:
    words, model = USES[use]
    REFUSED[kind][0](place / model)
    assert main(words) in (0, 2)
    assert not trap.exists()


@pytest.mark.parametrize("use", USES)
def test_what_is_not_read_does_no_harm(use: str, place: Path, trap: Path) -> None:
    words, model = USES[use]
    for change in IGNORED.values():
        change(place / model)
    assert main(words) == 0
    assert not trap.exists()


@pytest.mark.parametrize("kind", IGNORED)
def test_the_vectors_are_those_of_the_weights(kind: str, place: Path, trap: Path) -> None:
    assert main(["encode", *GOOD["encode"]]) == 0
    before = Path("vectors.npy").read_bytes()
    IGNORED[kind](place / "model")
    assert main(with_flag("encode", "--output", "again.npy")) == 0
    assert Path("again.npy").read_bytes() == before
    assert not trap.exists()


def test_code_runs_when_it_is_trusted(place: Path, trap: Path) -> None:
    code_of_an_unknown_kind(place / "model")
    assert main([*with_flag("encode", "--output", "v.npy"), "--trust-remote-code"]) == 2  # it defines no class
    assert trap.exists()


def test_an_adapter_imports_nothing_and_its_base_is_said(place: Path, trap: Path, refused: Refused) -> None:
    words = with_flag("train", "--lora-rank", "2")
    assert main([*words, "--lora-save", "adapter", "--max-steps", "1"]) == 0
    shutil.move("out", "adapter")
    settings = Path("adapter/adapter_config.json")
    kept = settings.read_text()
    change_json(settings, megatron_config={"a": 1}, megatron_core="evil")
    refused(
        with_flag("encode", "--model", "adapter"), "its adapter sets megatron_config, which is not handled", lines=2
    )
    assert not trap.exists()
    settings.write_text(kept)
    change_json(settings, base_model_name_or_path=str(place / "adapter"))
    refused(with_flag("encode", "--model", "adapter"), "is one too; merge that with its own base first")


def test_nothing_is_unpickled(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, its checkpoints and going on from one, evaluation, encoding, scoring, averaging."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something is unpickled")

    train = [*with_flag("train", "--batch-size", "8"), "--save-steps", "1", "--eval-steps", "2", "--epochs", "2"]
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, steps=3)
        assert main(train) == 130
    assert list((place / "out" / "checkpoints").iterdir())
    assert main(train) == 0
    for command in ("evaluate", "encode", "search", "mine", "score", "merge", "export"):
        assert main([command, *GOOD[command]]) == 0, command


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def stop_after(patch: pytest.MonkeyPatch, *, steps: int) -> None:
    """Interrupt a run in the middle of the step after these."""
    from biencoder.training.steps.smaller_chunks import accumulate_within_memory

    done: list[int] = []

    def counted(*arguments: Any, **more: Any) -> Any:
        done.append(1)
        return interrupt() if len(done) > steps else accumulate_within_memory(*arguments, **more)

    patch.setattr("biencoder.training.steps.train_step.accumulate_within_memory", counted)


def test_a_model_in_the_cache_of_the_hub_is_a_folder_of_links(place: Path) -> None:
    snapshot = place / "models--a--b" / "snapshots" / "0123"
    blobs = place / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in (place / "model").iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert main(with_flag("encode", "--model", str(snapshot))) == 0


def test_a_reranker_is_never_an_adapter_in_disguise(place: Path, trap: Path, refused: Refused) -> None:
    tiny_cross_encoder(place / "reranker")
    pickles(place / "reranker")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "model"}
    (place / "reranker" / "adapter_config.json").write_text(json.dumps(adapter))
    refused(["score", *GOOD["score"]], "holds a whole model and an adapter")
    assert not trap.exists()
