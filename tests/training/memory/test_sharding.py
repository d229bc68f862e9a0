"""Sharded weights: the same gradients, a share of the memory, the same files. Processes are shared by many checks."""

import itertools
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import world
from runs import metrics, small_config, small_run
from safetensors.torch import load_file
from tiny import gradient_errors, tiny_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from world import BERT, DENSE, MULTI, SPARSE, THREE, Combination

from biencoder import Encoder
from biencoder.config import TrainConfig
from biencoder.config.choices import FLOPS, L1
from biencoder.data import stored_rows, table_parts
from biencoder.data.text import text_hash
from biencoder.device import cpu
from biencoder.distributed import gathered_state, process_group, sum_gradients
from biencoder.errors import UserError
from biencoder.model.adapting.freezing import freeze
from biencoder.model.adapting.lora import add_lora
from biencoder.model.files.pretrained import checkpoint_activations
from biencoder.model.packing import pack
from biencoder.model.parallel.sharded import cut_like, gathered, is_sharded, own, own_places
from biencoder.training import preparation, run
from biencoder.training.memory import sharding
from biencoder.training.memory.state import StateBytes, Weights, bytes_of_a_rank, state_of
from biencoder.training.optimizer import adamw, clip_gradients
from biencoder.training.run import train
from biencoder.training.state.tensor_file import save_tensors

TOLERANCE, CANCELLING = 1e-5, 0.1  # as in test_equivalence
STEPS, STOP, SAVED = 7, 6, 3  # of a run; the step in which it is stopped, and the checkpoint before
ALL = (True, True, True, True)
LOSSES = [
    (Combination(7, False, True, True, True), "all"),
    (Combination(3, True, True, True, True), "part"),  # of four ranks, one has no query
    (Combination(7, True, False, False, True), "none"),
    (Combination(7, False, True, True, False), "part"),
    (Combination(7, *ALL, distillation="margin-mse"), "part"),
    (Combination(7, *ALL, two_way=True, dims=(32, 12, 5), guided=True), "part"),
    (Combination(7, *ALL, two_way=True, model=DENSE), "part"),
    (Combination(3, *ALL, two_way=True, model=MULTI), "none"),
    (Combination(7, *ALL, two_way=True, sparsity=FLOPS, model=SPARSE), "part"),
    (Combination(7, *ALL, sparsity=L1, model=SPARSE), "part"),
    (Combination(7, *ALL, two_way=True, guided=True, model=THREE), "part"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    world.write_models(folder)
    world.write_rows(folder)
    write_kinds(folder)
    small_run(folder / "plain")
    small_run(folder / "dropout", dropout=True)
    return folder


def shard_over_all(encoder: Encoder, *, offload: bool = False) -> None:
    sharding.shard(encoder, init_device_mesh("cpu", (dist.get_world_size(),)), offload=offload)


def found(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """What one of some processes finds in all the checks below."""
    four_stop(folder) if ranks == 4 else two_train(folder)
    return {
        "gradients": losses_and_gradients(rank, ranks, folder),
        "bytes": bytes_held(folder, ranks),
        "files": files_written(rank, folder),
        "kinds": errors_of_kinds(folder) if ranks == 2 else [],
        "loaded": loading(folder),
    }


@pytest.fixture(scope="module")
def of_four(folder: Path) -> list[dict[str, Any]]:
    return world.run(4, folder, found)


@pytest.fixture(scope="module")
def of_two(folder: Path, of_four: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """After the four, whose run the two continue."""
    assert len(of_four) == 4
    return world.run(2, folder, found)


# --- gradients --------------------------------------------------------------------------------------------------------


def losses_of(ranks: int) -> list[tuple[Combination, str]]:
    """Each once: on four ranks, those that leave one without a query; on two, the others."""
    return [loss for loss in LOSSES if (loss[0].queries < ranks) == (ranks == 4)]


def losses_and_gradients(rank: int, ranks: int, folder: Path) -> list[tuple[float, dict[str, Tensor]]]:
    dense: dict[str, Any] = {"pooling": "mean", "normalize": True}
    encoders = {}
    for name in {combination.model for combination, _ in losses_of(ranks)}:
        encoders[name] = Encoder.load(folder / name, **dense if name in (BERT, DENSE) else {})
    for name in sorted(encoders):  # all ranks in one order
        shard_over_all(encoders[name])
    guide = Encoder.load(folder / "guide", pooling="mean", normalize=True)
    outcomes = []
    for combination, keep in losses_of(ranks):
        encoder = encoders[combination.model].train()
        loss = world.add_gradients(encoder, guide, combination, keep, rank, ranks, folder)
        weights = encoder.named_parameters()
        outcomes.append((loss, {name: gathered(p.grad).clone() for name, p in weights if p.grad is not None}))
        encoder.zero_grad()
    return outcomes


def test_gradients_are_those_of_one_process(
    folder: Path, of_two: list[dict[str, Any]], of_four: list[dict[str, Any]]
) -> None:
    for ranks in (of_two, of_four):
        for number, (combination, keep) in enumerate(losses_of(len(ranks))):
            apart = 1 if combination.cross_device or not combination.in_batch else len(ranks)
            wanted_loss, wanted = world.trainer_truth(combination, apart, folder)
            for each in ranks:
                loss, gradients = each["gradients"][number]
                error = (abs(loss / wanted_loss - 1), *gradient_errors(gradients, wanted, CANCELLING))
                assert max(error) <= TOLERANCE, (len(ranks), combination, keep, error)


KINDS: list[dict[str, Any]] = [
    {"kind": "modernbert"},
    {"kind": "bert", "checkpointing": True},
    {"kind": "bert", "offload": True},
    {"kind": "bert", "frozen": 1},
    {"kind": "qwen3", "lora": True},
    {"kind": "bert", "precision": "bf16"},
    {"kind": "qwen3", "precision": "bf16"},
]


def write_kinds(folder: Path) -> None:
    for kind in {each["kind"] for each in KINDS}:
        tiny_model(folder / f"kind-{kind}", kind)


def errors_of_kinds(folder: Path) -> list[tuple[float, float]]:
    """How far gradients are from those of a whole model in float32: of the sharded model, and of the whole one.

    There are two forward passes before the first backward pass.
    """
    errors = []
    for asked in KINDS:
        exact = gradients_of(folder, asked | {"precision": "fp32"}, ranks=1)
        whole = gradients_of(folder, asked, ranks=1) if "precision" in asked else exact
        cut = gradients_of(folder, asked, ranks=dist.get_world_size())
        errors.append((max(gradient_errors(cut, exact)), max(gradient_errors(whole, exact))))
    return errors


def gradients_of(folder: Path, asked: dict[str, Any], ranks: int) -> dict[str, Tensor]:
    """Each rank takes the same two texts. So the sum over sharded ranks is that of one, times their number."""
    encoder = Encoder.load(folder / f"kind-{asked['kind']}", pooling="mean", precision=asked.get("precision", "fp32"))
    encoder.train()
    if asked.get("lora"):
        add_lora(encoder.backbone, rank=2, alpha=4.0, dropout=0.0, first_layer=0, base="base", seed=0)
    freeze(encoder.backbone, embeddings=False, layers=asked.get("frozen", 0))
    if asked.get("checkpointing"):
        checkpoint_activations(encoder.backbone)
    if ranks > 1:
        shard_over_all(encoder, offload=bool(asked.get("offload")))
    made = [encoder.embed(pack([text])) for text in ([5, 6, 7, 8], [9, 10, 11])]
    for vectors in made:
        (vectors * torch.linspace(-1, 1, vectors.numel())).sum().backward()
    weights = encoder.named_parameters()
    return {name: gathered(p.grad) / ranks for name, p in weights if p.grad is not None}


def test_gradients_of_other_kinds_of_models_are_the_same(of_two: list[dict[str, Any]]) -> None:
    for each in of_two:
        for asked, (cut, whole) in zip(KINDS, each["kinds"], strict=True):
            assert cut <= 1.5 * whole + TOLERANCE, (asked, cut, whole)


# --- memory -----------------------------------------------------------------------------------------------------------


def bytes_held(folder: Path, ranks: int) -> dict[str, Any]:
    """After a step of AdamW: what this rank holds, what is whole while the last layer computes, and the formula."""
    encoder = Encoder.load(folder / BERT, pooling="mean", normalize=True)
    alone, planned = state_of(encoder, 1), state_of(encoder, ranks)
    shard_over_all(encoder)
    whole: list[int] = []

    def count(*_: object) -> None:
        weights = [p for p in encoder.backbone.parameters() if not isinstance(p, DTensor)]
        whole.append(sum(p.nbytes for p in weights))

    encoder.backbone.encoder.layer[-1].attention.self.query.register_forward_hook(count)
    weights = list(encoder.parameters())
    optimizer = adamw(encoder, 1e-3, 0.1)
    encoder.embed(pack([[5, 6, 7]])).sum().backward()
    before = torch.nn.utils.get_total_norm([gathered(p.grad) for p in weights if p.grad is not None])
    norm = clip_gradients(weights, 1e-3)
    after = torch.nn.utils.get_total_norm([gathered(p.grad) for p in weights if p.grad is not None])
    optimizer.step()
    moments = [each for state in optimizer.state.values() for name, each in state.items() if name != "step"]
    return {
        "alone": tuple(alone),
        "planned": tuple(planned),
        "held": (
            sum(own(p).nbytes for p in weights),
            sum(own(p.grad).nbytes for p in weights if p.grad is not None),
            sum(own(moment).nbytes for moment in moments),
            2 * whole[0],
        ),
        "norms": [float(norm / before), float(after)],
    }


def test_a_rank_holds_its_share_and_the_formula_says_so(
    of_two: list[dict[str, Any]], of_four: list[dict[str, Any]]
) -> None:
    for ranks in (of_two, of_four):
        for each in (rank["bytes"] for rank in ranks):
            held, planned, alone = (StateBytes(*each[name]) for name in ("held", "planned", "alone"))
            for kind in ("weights", "gradients", "moments"):
                assert getattr(held, kind) <= 1.15 * getattr(alone, kind) / len(ranks), kind
            assert 0.85 * planned.weights <= held.weights <= 1.15 * planned.weights
            assert held.gathered == planned.gathered
            assert each["norms"] == pytest.approx([1.0, 1e-3], rel=1e-4)


def loading(folder: Path) -> dict[str, Any]:
    """How this rank gets the data, and a model that is to be sharded."""
    config = run_of(folder, "loaded")
    load = preparation.prepare_encoder
    times: list[float] = []
    texts: list[str] = []

    def timed(*words: Any, **named: Any) -> Any:
        times.append(time.monotonic())
        return load(*words, **named)

    def hashed(text: str) -> int:
        texts.append(text)
        return text_hash(text)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(table_parts, "NAMED_FROM", 0)
        patched.setattr(stored_rows, "text_hash", hashed)
        patched.setattr(preparation, "prepare_encoder", timed)
        patched.setattr(sharding, "say", lambda _: times.append(time.monotonic()))
        with process_group("cpu"):
            examples = run.read(config)
        encoder = preparation.prepare_model(config, examples).encoder
    assert is_sharded(encoder.backbone)
    return {"times": times, "texts": len(texts), "rows": examples.fingerprint}


def test_one_rank_of_a_host_reads_much_data(of_two: list[dict[str, Any]], of_four: list[dict[str, Any]]) -> None:
    for first, *others in ([each["loaded"] for each in ranks] for ranks in (of_two, of_four)):
        assert first["texts"] > 0
        assert [each["texts"] for each in others] == [0] * len(others)
        assert {each["rows"] for each in others} == {first["rows"]}


def test_a_host_holds_one_whole_model_at_a_time(of_two: list[dict[str, Any]], of_four: list[dict[str, Any]]) -> None:
    for ranks in (of_two, of_four):
        times = [each["loaded"]["times"] for each in ranks]
        assert list(itertools.chain(*times)) == sorted(itertools.chain(*times))


def test_the_formula_counts_what_is_whole_on_each_rank() -> None:
    held = bytes_of_a_rank(Weights(1001, 500), whole=Weights(10, 4), ranks=4, gathered=300)
    assert held == StateBytes(weights=251 + 10, gradients=125 + 4, moments=2 * 129, gathered=600)
    assert bytes_of_a_rank(Weights(1001, 500), Weights(10, 4), 1, 300) == StateBytes(1011, 504, 1008, 0)
    assert held.total == 261 + 129 + 258 + 600


# --- files ------------------------------------------------------------------------------------------------------------


def files_written(rank: int, folder: Path) -> dict[str, Any]:
    """A model saved sharded and not, and a file written by rows; whether tensors come back as they were."""
    ranks = dist.get_world_size()
    encoder = Encoder.load(folder / BERT, pooling="mean", normalize=True)
    state = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    if rank == 0:
        encoder.save(folder / f"whole-{ranks}")
    shard_over_all(encoder)
    weights = gathered_state(encoder.backbone)
    if rank == 0:
        encoder.save(folder / f"sharded-{ranks}", weights)
    save_tensors(folder / f"rows-{ranks}.safetensors", encoder.backbone.state_dict() | {"step": torch.tensor(3.0)})
    cut = dict(encoder.backbone.named_parameters())
    again = {name: cut_like(state[name], parameter) for name, parameter in cut.items()}
    return {
        "same": [torch.equal(own(again[name]), own(parameter)) for name, parameter in cut.items()],
        "places": {name: (own_places(parameter).start, own_places(parameter).stop) for name, parameter in cut.items()},
        "rows": {name: len(parameter) for name, parameter in cut.items()},
        "gathered": len(weights) == (len(state) if rank == 0 else 0),
    }


def test_files_are_those_of_whole_weights(
    folder: Path, of_two: list[dict[str, Any]], of_four: list[dict[str, Any]]
) -> None:
    for ranks in (of_two, of_four):
        one, other = folder / f"whole-{len(ranks)}", folder / f"sharded-{len(ranks)}"
        names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
        assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
        assert [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()] == []
        written = load_file(folder / f"rows-{len(ranks)}.safetensors")
        assert written.pop("step") == 3
        state = Encoder.load(folder / BERT).backbone.state_dict()
        assert written.keys() == state.keys()
        assert all(torch.equal(written[name], state[name]) for name in state)
        for files in (rank["files"] for rank in ranks):
            assert all(files["same"])
            assert files["gathered"]
        for name, rows in ranks[0]["files"]["rows"].items():  # one rank's after another's, none left out
            places = [range(*rank["files"]["places"][name]) for rank in ranks]
            assert list(itertools.chain(*places)) == list(range(rows))


# --- whole runs -------------------------------------------------------------------------------------------------------


def run_of(folder: Path, name: str, model: str = "plain", **changes: Any) -> TrainConfig:
    short: dict[str, Any] = {"shard": "on", "epochs": 1, "save_steps": SAVED, "keep_base": 0}
    return small_config(folder / model, output_dir=folder / name, **short | changes)


def stop(config: TrainConfig, step: int = STOP) -> None:
    """End a run inside of a step, on all ranks, when its gradients exist and the weights have not changed."""
    steps = itertools.count(1)

    def stopping(parameters: Iterable[nn.Parameter]) -> None:
        if next(steps) == step:
            raise InterruptedError
        sum_gradients(parameters)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("biencoder.training.steps.train_step.sum_gradients", stopping)
        with pytest.raises((InterruptedError, SystemExit)):  # the first rank to fail says why
            train(config)


def four_stop(folder: Path) -> None:
    stop(run_of(folder, "by-four"))


def two_train(folder: Path) -> None:
    whole = run_of(folder, "by-two", "dropout", lora_rank=2)
    stop(whole, STEPS)  # after its last checkpoint but one; to end it takes time
    stopped = replace(whole, output_dir=folder / "by-two-stopped")
    stop(stopped)
    train(stopped)
    if dist.get_rank() == 0:
        under_another_number(folder, 2)
    dist.barrier()
    train(run_of(folder, "on-two"))


def under_another_number(folder: Path, ranks: int) -> None:
    """A copy of the run that four ranks began, for others to continue."""
    output = folder / {1: "on-one", 2: "on-two"}[ranks]
    shutil.copytree(folder / "by-four", output)
    marker = output / "run.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"world_size": ranks}))


def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(folder: Path, of_two: list[dict[str, Any]]) -> None:
    assert len(of_two) == 2
    whole, resumed = folder / "by-two", folder / "by-two-stopped"
    assert [each["loss"] for each in metrics(whole)] == [each["loss"] for each in metrics(resumed)][: STEPS - 1]
    one, other = (each / "checkpoints" / f"step-{2 * SAVED:08d}" for each in (whole, resumed))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert all("lora" in name for name in load_file(one / "optimizer.safetensors"))
    assert not [name for name in load_file(resumed / "model.safetensors") if "lora" in name]


def test_the_run_of_four_ranks_goes_on_with_two_and_with_one(folder: Path, of_two: list[dict[str, Any]]) -> None:
    assert len(of_two) == 2
    under_another_number(folder, 1)
    train(run_of(folder, "on-one"))
    four, two, one = ([each["loss"] for each in metrics(folder / name)] for name in ("by-four", "on-two", "on-one"))
    assert len(four) == STOP - 1 > SAVED
    assert two[: len(four)] == pytest.approx(four, rel=1e-5)
    assert one == pytest.approx(two, rel=1e-5)


# --- when weights are sharded ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shard", "ranks", "memory", "model", "are_cut"),
    [
        ("auto", 2, 1.01, BERT, False),
        ("auto", 2, 0.99, BERT, True),
        ("auto", 2, 0.99, world.STATIC, False),
        ("auto", 1, 0.99, BERT, False),
        ("on", 2, 9.0, BERT, True),
        ("on", 1, 0.99, BERT, False),
        ("off", 2, 0.99, BERT, False),
    ],
)
def test_weights_are_sharded_where_they_must_be_or_where_you_ask(
    shard: str,
    ranks: int,
    memory: float,
    model: str,
    are_cut: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The memory of the device, over what the weights, gradients and moments of one process take."""
    encoder, asked = Encoder.load(folder / model, on_host=True), []
    monkeypatch.setattr(sharding, "world_size", lambda: ranks)
    monkeypatch.setattr(sharding, "init_device_mesh", lambda *_: SimpleNamespace(size=lambda: ranks))
    monkeypatch.setattr(sharding, "shard", lambda _, __, offload: asked.append(offload))
    monkeypatch.setattr(cpu.Cpu, "memory", lambda _: int(memory * state_of(encoder, 1).total))
    config = replace(small_config(folder / "plain", shard=shard), model=str(folder / model))
    sharing = sharding.agree_on_sharding(config)
    if sharing is not None:
        sharing.place(encoder)
    assert asked == [False] * are_cut
    assert ("weights are sharded over 2 processes: each holds" in capsys.readouterr().out) == are_cut


# --- what does not go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "precision", "why"),
    [
        (world.STATIC, "fp32", "a static model has no layers to shard"),
        (world.TABLE, "fp32", "needs whole weights"),
        (world.WORDS_TOO, "fp32", "needs whole weights"),
        (BERT, "fp16", "the scale of gradients in fp16"),
    ],
)
def test_what_cannot_be_sharded_is_refused(model: str, precision: str, why: str, folder: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(folder / model)
    encoder.precision = precision
    mesh: Any = None
    sharing = sharding.Sharding(small_run(tmp_path, shard="on"), torch.device("cpu"), mesh, 0)
    with pytest.raises(UserError, match=f"--shard on: .*{why}.*; use --shard off"):
        sharing.place(encoder)
