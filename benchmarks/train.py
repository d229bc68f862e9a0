"""Training pairs a second, each system in turn and again, so that a busy machine is busy for all of them.

python -m benchmarks.train --train-data medquad/train.jsonl.gz --output-dir build/train
"""

import shutil
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.workload import (
    Measured,
    arguments,
    as_dict,
    compared,
    limits,
    measure,
    precision,
    report,
    sample,
    save,
    workload,
)

SYSTEMS = (
    "biencoder",
    "sentence-transformers fp32",
    "sentence-transformers bf16",
    "FlagEmbedding fp32",
    "FlagEmbedding bf16",
)
SKIPPED = 2  # first steps: memory is being allocated, kernels chosen


def main() -> None:
    """Measure, print the table."""
    parser = arguments(__doc__ or "", batch_size=32, max_length=256, systems=SYSTEMS)
    parser.add_argument(
        "--steps", type=int, default=12, help=f"optimizer steps a run; the first {SKIPPED} do not count"
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of each system")
    asked = parser.parse_args()
    runs: dict[str, list[Measured]] = {system: [] for system in asked.systems}
    shares: dict[str, list[float]] = {system: [] for system in asked.systems}
    limits_found: list[dict[str, Any]] = []
    for repeat in range(asked.repeats):
        with sample(asked.train_data, asked.steps * asked.batch_size, seed=repeat) as rows:
            limit = limits(replace(workload(asked, "", "base"), train_data=str(rows)))
            limits_found.append(limit)
            for system in asked.systems:
                work = replace(workload(asked, system, f"train-{system}"), train_data=str(rows), seed=repeat)
                shutil.rmtree(work.output_dir, ignore_errors=True)
                runs[system].append(measure(replace(work, max_steps=asked.steps)))
                speed = runs[system][-1].pairs_per_second(SKIPPED)
                used = speed * limit["tokens_a_pair"] * limit["gflop_a_token"]
                shares[system].append(used / limit["peaks"][precision(system, asked.device)])
                print(f"{repeat + 1}/{asked.repeats} {system}: {speed:.2f} pairs/s", flush=True)
        found = [
            {**as_dict(run), "limit": limit}
            for done in runs.values()
            for run, limit in zip(done, limits_found, strict=True)
        ]
        save(asked, "train", found)
    speeds = {system: [run.pairs_per_second(SKIPPED) for run in done] for system, done in runs.items()}
    tokens_a_pair = median(limit["tokens_a_pair"] for limit in limits_found)
    peaks = {name: median(limit["peaks"][name] for limit in limits_found) for name in ("bf16", "fp32")}
    rows_shown = [
        [
            system,
            *compared(values, speeds[asked.systems[0]]),
            f"{median(values) * tokens_a_pair:,.0f}",
            f"{median(shares[system]):.0%} of {peaks[precision(system, asked.device)] / 1000:.2f} TFLOP/s",
            f"{median(run.peak_bytes for run in runs[system]) / 1e9:.2f}",
            f"{max(run.disturbance for run in runs[system]):.0%}",
        ]
        for system, values in speeds.items()
    ]
    columns = [
        "system",
        "pairs/s (median)",
        "range",
        f"{asked.systems[0]}, times as fast",
        "useful tokens/s",
        "share of the GEMM peak",
        "peak memory, GB",
        "disturbed",
    ]
    report(asked, f"Throughput, {asked.repeats} runs of {asked.steps} steps", columns, rows_shown)


if __name__ == "__main__":
    main()
