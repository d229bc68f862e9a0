"""Peak memory of training at small and very large batches, without a budget or with one.

python -m benchmarks.memory --train-data medquad/train.jsonl.gz --output-dir build/memory
"""

import shutil
from dataclasses import replace

from benchmarks.workload import arguments, as_dict, measure, report, sample, save, workload
from biencoder.config.values import parse_size

SYSTEMS = ("biencoder",)
STEPS = 2  # the optimizer's state appears in the first step, so the second one is whole


def main() -> None:
    """Measure, print the table."""
    parser = arguments(__doc__ or "", batch_size=32, max_length=256, systems=SYSTEMS)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 256, 4096, 8192], help="pairs, in turn")
    parser.add_argument("--memory-budget", type=parse_size, help="for biencoder, such as 1.5GB (default: none)")
    asked = parser.parse_args()
    results, rows_shown = [], []
    for system in asked.systems:
        first = 0
        for batch_size in asked.batch_sizes:
            with sample(asked.train_data, STEPS * batch_size) as rows:
                work = replace(
                    workload(asked, system, f"memory-{system}-{batch_size}"),
                    train_data=str(rows),
                    batch_size=batch_size,
                    max_steps=STEPS,
                    memory_budget=asked.memory_budget,
                )
                shutil.rmtree(work.output_dir, ignore_errors=True)
                run = measure(work)
            first = first or run.peak_bytes
            results.append(as_dict(run))
            rows_shown.append([system, str(batch_size), f"{run.peak_bytes / 1e9:.2f}", f"{run.peak_bytes / first:.2f}"])
            print(f"{system}, batch {batch_size}: {run.peak_bytes / 1e9:.2f} GB", flush=True)
            save(asked, "memory", results)
    columns = ["system", "batch", "peak memory, GB", f"times that of batch {asked.batch_sizes[0]}"]
    budget = f"budget of {asked.memory_budget / 1e9:g} GB" if asked.memory_budget else "no budget"
    report(asked, f"Peak resident memory, {STEPS} steps, {budget}", columns, rows_shown)


if __name__ == "__main__":
    main()
