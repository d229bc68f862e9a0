"""Peak memory of training at a small and at a very large batch.

python -m benchmarks.memory --train-data medquad/train.jsonl.gz --output-dir build/memory
"""

import shutil
from dataclasses import replace

from benchmarks.workload import arguments, as_dict, measure, report, sample, save, workload

SYSTEMS = ("biencoder",)
STEPS = 2  # the optimizer's state appears in the first step, so the second one is whole


def main() -> None:
    """Measure, print the table."""
    parser = arguments(__doc__ or "", batch_size=32, max_length=256, systems=SYSTEMS)
    parser.add_argument("--large-batch-size", type=int, default=4096, help="pairs a step, the second time")
    asked = parser.parse_args()
    results, rows_shown = [], []
    for system in asked.systems:
        peaks = []
        for batch_size in (asked.batch_size, asked.large_batch_size):
            with sample(asked.train_data, STEPS * batch_size) as rows:
                work = replace(workload(asked, system, f"memory-{system}-{batch_size}"), train_data=str(rows))
                shutil.rmtree(work.output_dir, ignore_errors=True)
                run = measure(replace(work, batch_size=batch_size, max_steps=STEPS))
            results.append(as_dict(run))
            peaks.append(run.peak_bytes)
            print(f"{system}, batch {batch_size}: {run.peak_bytes / 1e9:.2f} GB", flush=True)
        rows_shown.append([system, *(f"{peak / 1e9:.2f}" for peak in peaks), f"{peaks[1] / peaks[0]:.2f}"])
    save(asked, "memory", results)
    columns = ["system", f"GB at batch {asked.batch_size}", f"GB at batch {asked.large_batch_size}", "ratio"]
    report(asked, f"Peak resident memory, {STEPS} steps", columns, rows_shown)


if __name__ == "__main__":
    main()
