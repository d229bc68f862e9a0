"""The systems under comparison, each used through its public interface as its documentation shows.

Run as ``python -m benchmarks.systems WORKLOAD_JSON RESULT_FILE`` by `benchmarks.workload.measure`. The clock is the
same for all: PyTorch's own hook behind every optimizer's step.
"""

import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.workload import Workload


def read_pairs(path: str) -> tuple[list[str], list[str]]:
    """Queries and first positives of a JSON lines file."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row["query"] for row in rows], [row["pos"][0] for row in rows]


def biencoder(work: Workload, precision: str) -> None:
    """`biencoder train`, with a held-out set of one query: other systems do not evaluate either."""
    from biencoder import TrainConfig, train

    queries, passages = read_pairs(work.train_data)
    with tempfile.TemporaryDirectory() as folder:
        train(
            TrainConfig(
                model=work.model,
                train_data=(Path(work.train_data),),
                eval_data=write_tiny_collection(Path(folder), queries[0], passages[:2]),
                output_dir=Path(work.output_dir),
                batch_size=work.batch_size,
                group_size=1,
                query_max_len=work.max_length,
                passage_max_len=work.max_length,
                temperature=work.temperature,
                learning_rate=work.learning_rate,
                warmup_ratio=0.1,
                weight_decay=0.01,
                max_grad_norm=1.0,
                dropout=work.dropout,
                max_steps=work.max_steps,
                precision=precision,
                seed=work.seed,
                resume="never",
                device="cpu",
            )
        )


def write_tiny_collection(folder: Path, query: str, passages: list[str]) -> Path:
    """A BEIR folder with one query whose answer is the first of the passages."""
    (folder / "qrels").mkdir()
    corpus = [json.dumps({"_id": str(number), "text": text}) for number, text in enumerate(passages)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus) + "\n", encoding="utf-8")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": query}) + "\n", encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t0\t1\n", encoding="utf-8")
    return folder


def sentence_transformers(work: Workload, bf16: bool) -> None:
    """sentence-transformers' trainer with its standard loss, and batches without duplicates as its pages advise."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.training_args import BatchSamplers

    dropout: dict[str, Any] = {}
    if work.dropout is not None:
        dropout = {"hidden_dropout_prob": work.dropout, "attention_probs_dropout_prob": work.dropout}
    model = SentenceTransformer(work.model, device="cpu", config_kwargs=dropout)
    model.max_seq_length = work.max_length
    queries, passages = read_pairs(work.train_data)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=work.output_dir,
            num_train_epochs=1,
            max_steps=work.max_steps or -1,
            per_device_train_batch_size=work.batch_size,
            learning_rate=work.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.1,  # below 1 it is a share of all steps
            weight_decay=0.01,
            max_grad_norm=1.0,
            bf16=bf16,
            use_cpu=True,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            seed=work.seed,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"anchor": queries, "positive": passages}),
        loss=MultipleNegativesRankingLoss(model, scale=1 / work.temperature),
    )
    trainer.train()
    model.save_pretrained(work.output_dir)


SYSTEMS: dict[str, Callable[[Workload], None]] = {
    "biencoder": partial(biencoder, precision="auto"),
    "biencoder fp32": partial(biencoder, precision="fp32"),
    "sentence-transformers fp32": partial(sentence_transformers, bf16=False),
    "sentence-transformers bf16": partial(sentence_transformers, bf16=True),
}


def main() -> None:
    """Run one workload and write when each of its steps ended."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    step_ends: list[float] = []
    register_optimizer_step_post_hook(lambda *_: step_ends.append(time.perf_counter()))
    work = Workload(**json.loads(sys.argv[1]))
    SYSTEMS[work.system](work)
    Path(sys.argv[2]).write_text(json.dumps({"step_ends": step_ends}), encoding="utf-8")


if __name__ == "__main__":
    main()
