"""Is training and encoding on a GPU right, and how fast is it? One command, about five minutes on one GPU.

python -m benchmarks.gpu --output-dir build/gpu

First it checks, then it measures beside sentence-transformers, if that is installed. It needs no data and no model: all
are made on the spot. With ``--device cpu --small`` it runs with toys, to see that it works.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.gpu_checks import all_checks, said_in
from benchmarks.peak import gflops, linear_shapes, wait_for_device
from benchmarks.shapes import SHAPES, write_model, write_pairs
from benchmarks.systems import write_tiny_collection
from biencoder import Encoder, TrainConfig, train
from biencoder.device.choice import choose_device
from biencoder.device.cuda import CUBLAS_WORKSPACE, FIXED_WORKSPACE
from biencoder.errors import UserError

TEMPERATURE = 0.05
LEARNING_RATE = 2e-5
SKIPPED = 24  # first steps of a run: memory is being allocated, and a kernel chosen and loaded for each number of rows
SKIPPED_LARGE = 4  # of a large batch, whose number of rows changes little
PROFILED = 2  # steps behind those that are timed
RESULT = "gpu.json"
COLUMNS = (
    "row", "system", "per second", "times theirs (goal)", "share of the card", "peak GB", "busy", "lowest cosine",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A training that is measured.

    Attributes:
        shape: a name in `benchmarks.shapes.SHAPES`.
        batch: pairs a step.
        tokens: most of a text.
        steps: that are timed.
        mini_batch: texts at a time in sentence-transformers' cached loss; None for its plain loss.
        goal: times as fast as sentence-transformers.
    """

    shape: str
    batch: int
    tokens: int
    steps: int
    goal: float
    mini_batch: int | None = None

    @property
    def name(self) -> str:
        """As the table says it."""
        cached = ", cached" if self.mini_batch else ""
        return f"{self.shape}, {self.batch:,} x {self.tokens}{cached}"

    @property
    def skipped(self) -> int:
        """Steps before those that are timed."""
        return SKIPPED_LARGE if self.mini_batch else SKIPPED


ROWS = (
    Row("MiniLM-L6", 256, 256, 12, 4.0),
    Row("BERT-base", 64, 512, 12, 4.0),
    Row("ModernBERT-base", 64, 512, 8, 3.0),
    Row("Qwen3-0.6B", 32, 512, 6, 4.0),
    Row("MiniLM-L6", 8192, 128, 3, 3.0, mini_batch=512),
)
SMALL_ROWS = (Row("BERT-base", 8, 32, 2, 4.0), Row("MiniLM-L6", 32, 16, 2, 3.0, mini_batch=8))
ENCODED = ("MiniLM-L6", "BERT-base")


def main() -> None:
    """Check, measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for models, runs and results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="toys instead of real shapes")
    parser.add_argument("--seconds", type=float, default=300, help="begin no row after this time")
    parser.add_argument("--skip-checks", action="store_true", help="measure only")
    asked = parser.parse_args()
    try:
        choose_device(asked.device)
    except UserError as error:
        parser.error(str(error))
    if asked.output_dir.exists() and not (asked.output_dir / RESULT).is_file():
        parser.error(f"--output-dir {asked.output_dir}: exists, and an earlier run of this benchmark did not make it")
    began = time.perf_counter()
    os.environ.setdefault(CUBLAS_WORKSPACE, FIXED_WORKSPACE)  # PyTorch reads it at its first product, and not again
    shutil.rmtree(asked.output_dir, ignore_errors=True)
    asked.output_dir.mkdir(parents=True)
    result: dict[str, Any] = {"machine": machine(asked.device), "checks": [], "rows": []}
    write(asked.output_dir, result)
    failed = False
    if not asked.skip_checks:
        for check in all_checks(asked.output_dir, asked.device, small=asked.small):
            failed |= not check.passed
            result["checks"].append(check._asdict() | {"passed": check.passed})
            print(shown(result["checks"][-1]), flush=True)
            write(asked.output_dir, result)
    for measured in measurements(asked.output_dir, asked.device, small=asked.small):
        result["rows"].append(measured)
        print(json.dumps(measured), flush=True)
        write(asked.output_dir, result)
        if time.perf_counter() - began > asked.seconds:
            print(f"stopped after {asked.seconds:.0f} s: rows are missing", flush=True)
            break
    print((asked.output_dir / "gpu.md").read_text(encoding="utf-8"))
    sys.exit(int(failed))


def shown(check: dict[str, Any]) -> str:
    """A check in a line."""
    verdict = "ok" if check["passed"] else "FAILED"
    return f"{verdict}: {check['name']}: {check['found']:.3g} (at most {check['limit']:.3g})"


def measurements(folder: Path, device: str, *, small: bool) -> Iterator[dict[str, Any]]:
    """Every row: training, what ``--deterministic`` costs, encoding."""
    for row in SMALL_ROWS if small else ROWS:
        model = write_model(folder / row.shape, SHAPES[row.shape], small=small)
        pairs = folder / f"{row.shape}-{row.batch}.jsonl"
        texts = write_pairs(pairs, row.batch * 4, row.tokens)
        limit = _limit(model, texts, row.tokens, device)
        for system, run in _systems(model, pairs, texts, row, device).items():
            yield {"row": row.name, "goal": row.goal, "system": system, **_timed(run, row, limit, device)}
    for shape in ENCODED[: 1 if small else None]:
        model = write_model(folder / shape, SHAPES[shape], small=small)
        _, documents = write_pairs(folder / "encoded.jsonl", 64 if small else 16_384, 32 if small else 256)
        yield from _encoding(shape, model, documents, device)


Run = Callable[[Callable[[], None]], None]  # given what to call after each optimizer step


def _systems(model: Path, pairs: Path, texts: tuple[list[str], list[str]], row: Row, device: str) -> dict[str, Run]:
    """What is compared on a row."""
    steps = row.skipped + row.steps + PROFILED
    systems: dict[str, Run] = {
        "biencoder": lambda after: _biencoder(model, pairs, texts, row, steps, device, after),
    }
    if row.shape == "BERT-base":
        systems["biencoder --deterministic"] = lambda after: _biencoder(
            model, pairs, texts, row, steps, device, after, deterministic=True
        )
    if importlib.util.find_spec("sentence_transformers"):
        systems["sentence-transformers bf16"] = lambda after: _sentence_transformers(
            model, texts, row, steps, device, after
        )
    return systems


def _biencoder(
    model: Path,
    pairs: Path,
    texts: tuple[list[str], list[str]],
    row: Row,
    steps: int,
    device: str,
    after: Callable[[], None],
    *,
    deterministic: bool = False,
) -> None:
    """`biencoder train` with the settings of the others."""
    output = model.parent / "tuned"
    held_out = write_tiny_collection(model.parent / "eval", texts[0][0], texts[1][:2])
    shutil.rmtree(output, ignore_errors=True)
    hook = register_optimizer_step_post_hook(lambda *_: after())
    try:
        with said_in(model.parent / "train.log"):
            train(
                TrainConfig(
                    model=str(model), train_data=(pairs,), eval_data=held_out, output_dir=output, device=device,
                    batch_size=row.batch, group_size=1, query_max_len=row.tokens, passage_max_len=row.tokens,
                    temperature=TEMPERATURE, learning_rate=LEARNING_RATE, two_way=False, cluster_size=1,
                    precision="bf16", deterministic=deterministic, max_steps=steps, eval_steps=10**6,
                    save_steps=10**6, resume="never", general_guard=False, cross_validate=False,
                )
            )  # fmt: skip
    finally:
        hook.remove()


def _sentence_transformers(
    model: Path, texts: tuple[list[str], list[str]], row: Row, steps: int, device: str, after: Callable[[], None]
) -> None:
    """Its model and its loss under bf16 autocast with a fused AdamW, as its trainer runs them, without its loader."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

    encoder = SentenceTransformer(str(model), device=device)
    encoder.max_seq_length = row.tokens
    encoder.train()
    loss: Any = MultipleNegativesRankingLoss(encoder, scale=1 / TEMPERATURE)
    if row.mini_batch:
        loss = CachedMultipleNegativesRankingLoss(encoder, scale=1 / TEMPERATURE, mini_batch_size=row.mini_batch)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    starts = cycle(range(0, len(texts[0]), row.batch))
    labels = torch.arange(row.batch, device=device)
    for start in islice(starts, steps):
        sides = [encoder.tokenize(side[start : start + row.batch]) for side in texts]
        features = [{name: x.to(device) for name, x in side.items() if torch.is_tensor(x)} for side in sides]
        with torch.autocast(device, torch.bfloat16):
            value = loss(features, labels)
        value.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after()


@dataclass(frozen=True)
class Limit:
    """What the card can do, and what a pair asks of it.

    Attributes:
        flops: bf16 products of the model's own shapes, each second.
        flop_a_pair: of the linear layers in training: forward, and both gradients.
        tokens_a_pair: mean over the pairs.
    """

    flops: float
    flop_a_pair: float
    tokens_a_pair: float


def _limit(model: Path, texts: tuple[list[str], list[str]], max_length: int, device: str) -> Limit:
    encoder = Encoder.load(model, device="cpu")
    shapes = linear_shapes(encoder.backbone)
    count = sum(min(max_length, len(text.split()) + 2) for side in texts for text in side) / len(texts[0])
    flop = 6 * sum(rows * columns for rows, columns in shapes) * count
    return Limit(1e9 * gflops(shapes, torch.bfloat16, device), flop, count)


def _timed(run: Run, row: Row, limit: Limit, device: str) -> dict[str, Any]:
    """Pairs a second over the timed steps, share of the card's rate, peak memory, and how busy the card was."""
    _forget(device)
    clock, profiler = _Clock(row.skipped, row.steps), _Profiler(device)

    def after() -> None:
        clock.tick()
        if clock.steps == row.skipped + row.steps:
            profiler.start()
        elif clock.steps == row.skipped + row.steps + PROFILED:
            profiler.stop()

    run(after)
    speed = row.batch * row.steps / clock.seconds
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {
        "pairs_per_second": round(speed, 1),
        "step_seconds": round(clock.seconds / row.steps, 5),
        "median_step_seconds": round(clock.median, 5),
        "first_step_seconds": [round(each, 4) for each in clock.first],
        "tokens_a_pair": round(limit.tokens_a_pair, 1),
        "card_tflops": round(limit.flops / 1e12, 2),
        "share_of_products": round(speed * limit.flop_a_pair / limit.flops, 4),
        "peak_gb": round(peak / 1e9, 2),
        "device_busy": profiler.busy,
    }


class _Clock:
    """The time of the steps behind the skipped ones; it waits for the device before and after them, not between."""

    def __init__(self, skipped: int, timed: int) -> None:
        self._skipped, self._timed = skipped, timed
        self._ends: list[float] = []

    @property
    def steps(self) -> int:
        """That are done."""
        return len(self._ends)

    @property
    def seconds(self) -> float:
        """Of the timed steps."""
        return self._ends[self._skipped + self._timed - 1] - self._ends[self._skipped - 1]

    @property
    def median(self) -> float:
        """Of the timed steps, as the host sees them."""
        return float(np.median(np.diff(self._ends[self._skipped - 1 : self._skipped + self._timed])))

    @property
    def first(self) -> list[float]:
        """The steps behind the first one that are not timed: how soon a run is at its speed."""
        return [float(each) for each in np.diff(self._ends[: self._skipped])]

    def tick(self) -> None:
        """A step is done."""
        if self.steps + 1 in (self._skipped, self._skipped + self._timed):
            wait_for_device()
        self._ends.append(time.perf_counter())


class _Profiler:
    """The share of the time between start and stop in which the card computed something; None on a CPU."""

    def __init__(self, device: str) -> None:
        self._on = device == "cuda"
        self.busy: float | None = None

    def start(self) -> None:
        """Begin."""
        if self._on:
            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profile.start()
            self._began = time.perf_counter()

    def stop(self) -> None:
        """End."""
        if self._on:
            wait_for_device()
            spent = time.perf_counter() - self._began
            self._profile.stop()
            kernels = sum(event.self_device_time_total for event in self._profile.key_averages())
            self.busy = round(kernels / 1e6 / spent, 3)


def _encoding(shape: str, model: Path, texts: list[str], device: str) -> Iterator[dict[str, Any]]:
    """Documents a second, and the lowest cosine to float32 vectors."""
    exact = Encoder.load(model, device=device, precision="fp32", max_length=256).encode_passages(texts[:2048])

    def biencoder() -> Callable[[list[str]], np.ndarray]:
        return Encoder.load(model, device=device, precision="bf16", max_length=256).encode_passages

    def sentence_transformers() -> Callable[[list[str]], np.ndarray]:
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(model), device=device, model_kwargs={"dtype": torch.bfloat16})
        encoder.max_seq_length = 256
        return lambda asked: np.asarray(encoder.encode(asked, batch_size=256, normalize_embeddings=True), np.float32)

    systems = {"biencoder": biencoder}
    if importlib.util.find_spec("sentence_transformers"):
        systems["sentence-transformers bf16"] = sentence_transformers
    for name, load in systems.items():
        _forget(device)
        encode = load()
        encode(texts[:512])
        began = time.perf_counter()
        vectors = encode(texts)
        seconds = time.perf_counter() - began
        yield {
            "row": f"encoding, {shape}, 256 tokens",
            "goal": 2.0,
            "system": name,
            "documents_per_second": round(len(texts) / seconds, 1),
            "lowest_cosine": round(float((vectors[: len(exact)] * exact).sum(axis=1).min()), 6),
        }


def _forget(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def machine(device: str) -> str:
    """Card or processor, and versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write ``gpu.json`` and ``gpu.md``."""
    (folder / RESULT).write_text(json.dumps(result, indent=1), encoding="utf-8")
    lines = [result["machine"], ""]
    if result["checks"]:
        passed = sum(check["passed"] for check in result["checks"])
        lines += [f"{passed} of {len(result['checks'])} checks passed.", ""]
        lines += [f"- {shown(check)}" for check in result["checks"] if not check["passed"]]
    lines += [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    lines += [_line(measured, result["rows"]) for measured in result["rows"]]
    (folder / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _speed(measured: dict[str, Any]) -> float:
    return float(measured.get("pairs_per_second") or measured["documents_per_second"])


def _line(measured: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    theirs = [r for r in rows if r["row"] == measured["row"] and r["system"].startswith("sentence-transformers")]
    times = f"{_speed(measured) / _speed(theirs[0]):.2f} ({measured['goal']:g})" if theirs else ""
    share = f"{measured['share_of_products']:.0%}" if "share_of_products" in measured else ""
    cells = [measured["row"], measured["system"], f"{_speed(measured):,.1f}", times, share]
    cells += [str(measured.get(name, "")) for name in ("peak_gb", "device_busy", "lowest_cosine")]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
