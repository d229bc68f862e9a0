"""The systems under comparison, each used through its public interface as its documentation shows.

Run as ``python -m benchmarks.systems WORKLOAD_JSON RESULT_FILE`` by `benchmarks.workload.measure`. The clock is the
same for all: PyTorch's own hook behind every optimizer's step.
"""

import gzip
import json
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.workload import Workload

UNCACHED = 16 * 10**9  # bytes of memory that keep the activations of some hundred pairs whole


def read_pairs(path: str) -> tuple[list[str], list[str]]:
    """Queries and first positives of a JSON lines file."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row["query"] for row in rows], [row["pos"][0] for row in rows]


def biencoder(
    work: Workload,
    precision: str,
    memory_budget: int | None = None,
    own_defaults: bool = False,
    heads: str | None = None,
) -> None:
    """`biencoder train`, with a held-out set of one query: other systems do not evaluate either.

    With its own defaults, only data, epochs, batch and lengths are those of the others; else everything is.
    """
    from biencoder import TrainConfig, train

    queries, passages = read_pairs(work.train_data)
    alike: dict[str, Any] = {
        "temperature": work.temperature,
        "learning_rate": work.learning_rate,
        "two_way": False,
        "cluster_size": 1,
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "general_guard": False,
        "cross_validate": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        train(
            TrainConfig(
                model=work.model,
                train_data=(Path(work.train_data),),
                eval_data=write_tiny_collection(Path(folder), queries[0], passages[:2]),
                output_dir=Path(work.output_dir),
                batch_size=work.batch_size,
                group_size=1,
                query_max_len=work.query_length or work.max_length,
                passage_max_len=work.max_length,
                heads=heads,
                skip_punctuation=False,
                dropout=work.dropout,
                max_steps=work.max_steps,
                precision=precision,
                memory_budget=work.memory_budget or memory_budget,
                seed=work.seed,
                resume="never",
                device=work.device,
                **({} if own_defaults else alike),
            )
        )


def biencoder_without_kernels(work: Workload) -> None:
    """`biencoder train` as it is where no kernels were compiled."""
    from biencoder.model.kernels.library import without_kernels

    with without_kernels():
        biencoder(work, precision="auto")


def write_tiny_collection(folder: Path, query: str, passages: list[str]) -> Path:
    """A BEIR folder with one query whose answer is the first of the passages."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
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
    model = SentenceTransformer(work.model, device=work.device, config_kwargs=dropout)
    model.max_seq_length = work.max_length
    queries, passages = read_pairs(work.train_data)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            batch_sampler=BatchSamplers.NO_DUPLICATES, **_trainer_options(work, bf16)
        ),
        train_dataset=Dataset.from_dict({"anchor": queries, "positive": passages}),
        loss=MultipleNegativesRankingLoss(model, scale=1 / work.temperature),
    )
    trainer.train()
    model.save_pretrained(work.output_dir)


def sentence_transformers_multi_vector(work: Workload, bf16: bool) -> None:
    """sentence-transformers' trainer for a vector for each token, with the scores that biencoder's loss has."""
    from datasets import Dataset
    from sentence_transformers import (
        MultiVectorEncoder,
        MultiVectorEncoderTrainer,
        MultiVectorEncoderTrainingArguments,
    )
    from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
    from sentence_transformers.multi_vector_encoder.scoring import mean_colbert_scores
    from sentence_transformers.training_args import BatchSamplers

    model = MultiVectorEncoder(work.model, device=work.device)
    model[0].query_length, model[0].document_length = work.query_length or work.max_length, work.max_length
    queries, passages = read_pairs(work.train_data)
    trainer = MultiVectorEncoderTrainer(
        model=model,
        args=MultiVectorEncoderTrainingArguments(
            batch_sampler=BatchSamplers.NO_DUPLICATES, **_trainer_options(work, bf16)
        ),
        train_dataset=Dataset.from_dict({"query": queries, "positive": passages}),
        loss=MultiVectorMultipleNegativesRankingLoss(
            model, scale=1 / work.temperature, similarity_fct=mean_colbert_scores
        ),
    )
    trainer.train()
    model.save_pretrained(work.output_dir)


def _trainer_options(work: Workload, bf16: bool) -> dict[str, Any]:
    """What all of sentence-transformers' trainers are told."""
    return {
        "output_dir": work.output_dir,
        "num_train_epochs": 1,
        "max_steps": work.max_steps or -1,
        "per_device_train_batch_size": work.batch_size,
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,  # below 1 it is a share of all steps
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "bf16": bf16,
        "use_cpu": work.device == "cpu",
        "seed": work.seed,
        "save_strategy": "no",
        "report_to": "none",
    }


def flag_embedding(work: Workload, bf16: bool) -> None:
    """FlagEmbedding's own command for encoders, with cross-device negatives off: there is one device."""
    from biencoder.model.files.settings import read_settings

    queries, passages = read_pairs(work.train_data)
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"query": q, "pos": [p], "neg": []} for q, p in zip(queries, passages, strict=True)]
        train_data, model = Path(folder, "train.jsonl"), Path(folder, "model")
        train_data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        _with_dropout(Path(work.model), model, work.dropout)
        options: dict[str, Any] = {
            "model_name_or_path": model,
            "train_data": train_data,
            "cache_path": folder,
            "output_dir": work.output_dir,
            "train_group_size": 1,
            "query_max_len": work.max_length,
            "passage_max_len": work.max_length,
            "sentence_pooling_method": read_settings(Path(work.model)).pooling,
            "temperature": work.temperature,
            "num_train_epochs": 1,
            "max_steps": work.max_steps or -1,
            "per_device_train_batch_size": work.batch_size,
            "learning_rate": work.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.1,
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "bf16": bf16,
            "use_cpu": work.device == "cpu",
            "dataloader_drop_last": True,
            "seed": work.seed,
            "save_strategy": "no",
            "report_to": "none",
        }
        sys.argv = ["FlagEmbedding", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
        runpy.run_module("FlagEmbedding.finetune.embedder.encoder_only.base", run_name="__main__")


def _with_dropout(model: Path, folder: Path, dropout: float | None) -> None:
    """The model's files by links, under a configuration with another dropout: the command has no flag for it."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    if dropout is not None:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        config |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


SYSTEMS: dict[str, Callable[[Workload], None]] = {
    "biencoder": partial(biencoder, precision="auto"),
    "biencoder at its defaults": partial(biencoder, precision="auto", own_defaults=True),
    "biencoder fp32": partial(biencoder, precision="fp32"),
    "biencoder without kernels": biencoder_without_kernels,
    "biencoder uncached": partial(biencoder, precision="auto", memory_budget=UNCACHED),
    "sentence-transformers fp32": partial(sentence_transformers, bf16=False),
    "sentence-transformers bf16": partial(sentence_transformers, bf16=True),
    "biencoder multi-vector": partial(biencoder, precision="auto", heads="multi"),
    "sentence-transformers multi-vector fp32": partial(sentence_transformers_multi_vector, bf16=False),
    "sentence-transformers multi-vector bf16": partial(sentence_transformers_multi_vector, bf16=True),
    "FlagEmbedding fp32": partial(flag_embedding, bf16=False),
    "FlagEmbedding bf16": partial(flag_embedding, bf16=True),
}


def main() -> None:
    """Run one workload and write when each of its steps ended, and what tensors took of a GPU's memory."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    step_ends: list[float] = []
    register_optimizer_step_post_hook(lambda *_: step_ends.append(time.perf_counter()))
    work, result = Workload(**json.loads(sys.argv[1])), Path(sys.argv[2])
    SYSTEMS[work.system](work)
    gpu_peak = torch.cuda.max_memory_allocated() if work.device == "cuda" else 0
    result.write_text(json.dumps({"step_ends": step_ends, "gpu_peak": gpu_peak}), encoding="utf-8")


if __name__ == "__main__":
    main()
