"""Where the time of a training step goes, by PyTorch's profiler: products, kernels, and what stands around them.

python -m benchmarks.profile --train-data medquad/train.jsonl.gz --output-dir build/profile
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from benchmarks.floor import Floor, floor
from benchmarks.systems import read_pairs
from benchmarks.workload import arguments, model_folder, report, sample, save

WARM_UP, STEPS = 6, 5  # the first ones take memory from the system
# The parts of a step, and what the profiler calls what belongs to them.
PARTS = {
    "matrix products": {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "kernels: product"},
    "attention (kernels)": {"kernels: attention"},
    "GELU, dropout, residuals, normalisations (kernels)": {"kernels: layer"},
    "optimizer and clipping": {"aten::_fused_adamw_", "aten::linalg_vector_norm", "aten::mul_"},
    "copies and casts": {"kernels: weights", "aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::add_"},
}
REST = "embeddings, pooling, the loss, Python"


def wrap_kernels() -> None:
    """Give the profiler names for what it cannot see inside of."""
    from torch.profiler import record_function

    from biencoder.model.architectures import native_layer
    from biencoder.model.attention import native as native_attention
    from biencoder.model.kernels import linear as native_linear

    def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with record_function(name):
                return function(*args, **kwargs)

        return run

    native_attention._call = named(native_attention._call, "kernels: attention")
    for name in ("_residual_norm", "_norm_gradient", "_gelu", "_gelu_gradient", "_sum_over_tokens"):
        setattr(native_layer, name, named(getattr(native_layer, name), "kernels: layer"))
    for name in ("output", "input_gradient", "weight_gradient"):
        setattr(native_linear._TiledLinear, name, named(getattr(native_linear._TiledLinear, name), "kernels: product"))
    vars(native_layer)["linear"] = named(native_linear.linear, "kernels: weights")


def profile_steps(model: str, rows: Path, batch_size: int, max_length: int) -> tuple[Counter[str], Floor, int]:
    """Microseconds by part over `STEPS` steps, what one takes at the machine's rates, and the tokens of one."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from biencoder import Encoder
    from biencoder.model.packing import chunks
    from biencoder.objective.contrastive import ContrastiveObjective
    from biencoder.objective.labels import BatchLabels
    from biencoder.training.batch import TrainingBatch
    from biencoder.training.gradcache import accumulate_gradients
    from biencoder.training.memory.budget import token_budget
    from biencoder.training.optimizer import adamw

    encoder = Encoder.load(model, precision="auto", max_length=max_length, device="cpu")
    encoder.train()
    queries, passages = read_pairs(str(rows))
    chunk, keep, _ = token_budget(encoder, None, max_length)
    texts = encoder.tokenize(queries) + encoder.tokenize(passages)
    batch = TrainingBatch(
        chunks=list(chunks(texts, chunk)),
        queries=batch_size,
        query_sizes=[batch_size],
        passage_sizes=[batch_size],
        total_queries=batch_size,
        labels=BatchLabels(torch.arange(batch_size)[:, None], torch.arange(batch_size)),
    )
    optimizer = adamw(encoder.backbone, 1e-5, 0.01)

    def step(number: int) -> None:
        # Whatever is held: the profiler takes memory too, and each step would give back what the next one needs.
        accumulate_gradients(encoder, batch, ContrastiveObjective(), keep_tokens=keep, seed=(0, number))
        torch.nn.utils.clip_grad_norm_(encoder.backbone.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    wrap_kernels()
    for number in range(WARM_UP):
        step(number)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for number in range(STEPS):
            step(number)
    spent: Counter[str] = Counter()
    for event in profiled.key_averages():
        part = next((part for part, names in PARTS.items() if event.key in names), REST)
        spent[part] += event.self_cpu_time_total
    dtype = torch.bfloat16 if encoder.precision == "bf16" else torch.float32
    return spent, floor(encoder.backbone, [len(text) for text in texts], dtype), batch.tokens


def main() -> None:
    """Profile, print the table."""
    asked = arguments(__doc__ or "", batch_size=32, max_length=256, systems=("biencoder",)).parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    with sample(asked.train_data, asked.batch_size) as rows:
        spent, least, tokens = profile_steps(model_folder(asked), rows, asked.batch_size, asked.max_length)
    total, floors = sum(spent.values()), list(astuple(least))
    save(asked, "profile", [{"microseconds": dict(spent), "least": asdict(least), "tokens": tokens, "steps": STEPS}])
    shown = [
        [part, f"{spent[part] / STEPS / 1000:.0f}", f"{spent[part] / total:.0%}", f"{1000 * seconds:.0f}"]
        for part, seconds in zip((*PARTS, REST), [*floors, 0, 0], strict=True)
    ]
    shown.append(["all", f"{total / STEPS / 1000:.0f}", "100%", f"{1000 * sum(floors):.0f}"])
    columns = ["part", "ms", "share", "ms at these rates"]
    report(asked, f"A step of {tokens:,} tokens, mean of {STEPS}", columns, shown)
    share, most = STEPS * 1e6 * least.products / total, least.products / sum(floors)
    print(f"\nShare of the products' limit: {share:.0%} here, and {most:.0%} if every part ran at these rates")


if __name__ == "__main__":
    main()
