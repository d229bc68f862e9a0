"""Documents a second turned into vectors, each system in turn and again, and how near the vectors are to float32 ones.

python -m benchmarks.encode --train-data medquad/train.jsonl.gz --output-dir build/encode
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.systems import read_pairs
from benchmarks.workload import arguments, compared, last_line, report, sample, save, workload

SYSTEMS = (
    "biencoder",
    "biencoder fp32",
    "sentence-transformers fp32",
    "sentence-transformers bf16",
    "ONNX Runtime int8",
)
REFERENCE = "biencoder fp32"  # what the others' vectors are compared to
WARM_UP = 32  # texts before the clock starts


def biencoder(model: str, texts: list[str], max_length: int, device: str, precision: str) -> tuple[np.ndarray, float]:
    """By `Encoder`."""
    from biencoder import Encoder

    encoder = Encoder.load(model, precision=precision, max_length=max_length, device=device)
    encoder.encode_passages(texts[:WARM_UP])
    began = time.perf_counter()
    vectors = encoder.encode_passages(texts)
    return vectors, time.perf_counter() - began


def sentence_transformers(
    model: str, texts: list[str], max_length: int, device: str, dtype: str
) -> tuple[np.ndarray, float]:
    """By `SentenceTransformer.encode`, whose batch size is the default."""
    import torch
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device=device, model_kwargs={"dtype": getattr(torch, dtype)})
    if encoder.max_seq_length != math.inf:  # a static model takes texts whole
        encoder.max_seq_length = max_length
    encoder.encode(texts[:WARM_UP])
    began = time.perf_counter()
    vectors = encoder.encode(texts, normalize_embeddings=True)
    return np.asarray(vectors, dtype=np.float32), time.perf_counter() - began


def onnx_int8(model: str, texts: list[str], max_length: int, device: str) -> tuple[np.ndarray, float]:
    """By ONNX Runtime on the CPU, from a file that is made first."""
    if device != "cpu":
        raise SystemExit("--systems: ONNX Runtime int8 is measured on a CPU only")
    from biencoder import Encoder
    from biencoder.config.choices import ONNX
    from biencoder.model.runtimes.runtime import find_runtime
    from biencoder.model.runtimes.runtime_encoder import RuntimeEncoder

    encoder, runtime = Encoder.load(model, max_length=max_length), find_runtime(ONNX)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder.save(folder)
        runtime.write(encoder, folder)
        runs = RuntimeEncoder(runtime.session(runtime.write_int8(folder)), encoder)
        runs.encode(texts[:WARM_UP])
        began = time.perf_counter()
        vectors = runs.encode(texts)
        return vectors, time.perf_counter() - began


ENCODERS: dict[str, Callable[[str, list[str], int, str], tuple[np.ndarray, float]]] = {
    "biencoder": partial(biencoder, precision="auto"),
    "biencoder fp32": partial(biencoder, precision="fp32"),
    "sentence-transformers fp32": partial(sentence_transformers, dtype="float32"),
    "sentence-transformers bf16": partial(sentence_transformers, dtype="bfloat16"),
    "ONNX Runtime int8": onnx_int8,
}


def encode_once(system: str, model: str, texts_file: str, max_length: str, device: str, output: str) -> None:
    """In a process of its own: write the vectors, print the seconds."""
    _, texts = read_pairs(texts_file)
    vectors, seconds = ENCODERS[system](model, texts, int(max_length), device)
    np.save(output, vectors)
    print(seconds)


def main() -> None:
    """Measure, print the table."""
    parser = arguments(__doc__ or "", batch_size=32, max_length=256, systems=SYSTEMS)
    parser.add_argument("--texts", type=int, default=512, help="texts a run")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each system")
    asked = parser.parse_args()
    if REFERENCE not in asked.systems:
        parser.error(f"--systems must name {REFERENCE!r}: the vectors are compared to its own")
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    model = workload(asked, "", "base").model
    seconds: dict[str, list[float]] = {system: [] for system in asked.systems}
    outputs = {system: asked.output_dir / f"{system.replace(' ', '-')}.npy" for system in asked.systems}
    with sample(asked.train_data, asked.texts) as rows:
        for repeat in range(asked.repeats):
            for system in asked.systems:
                words = (system, model, str(rows), str(asked.max_length), asked.device, str(outputs[system].resolve()))
                seconds[system].append(float(last_line("benchmarks.encode", "--once", *words)))
                print(f"{repeat + 1}/{asked.repeats} {system}: {asked.texts / seconds[system][-1]:.1f}/s", flush=True)
    save(asked, "encode", [{"system": system, "seconds": times} for system, times in seconds.items()])
    exact = np.load(outputs[REFERENCE])
    speeds = {system: [asked.texts / t for t in times] for system, times in seconds.items()}
    rows_shown = [
        [
            system,
            *compared(values, speeds[asked.systems[0]]),
            f"{(np.load(outputs[system]) * exact).sum(axis=1).min():.6f}",
        ]
        for system, values in speeds.items()
    ]
    columns = ["system", "documents/s (median)", "range", f"{asked.systems[0]}, times as fast", "lowest cosine to fp32"]
    report(asked, f"Encoding, {asked.repeats} runs of {asked.texts} texts", columns, rows_shown)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        encode_once(*sys.argv[2:])
    else:
        main()
