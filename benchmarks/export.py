"""How near the vectors of exported files are to the model's, and what int8 costs in nDCG@10.

MiniLM is real. ModernBERT and Qwen3 are random models of small but usual shapes, with MiniLM's tokenizer, so a ranking
by them says nothing. sentence-transformers loads the exported folders too, if you name an environment with optimum-onnx
(--onnx-python) or optimum-intel (--openvino-python): they do not take the newest transformers.

python -m benchmarks.export --data medquad/dev-small --output-dir build/export
"""

import argparse
import json
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.workload import ROOT, print_table, save
from biencoder import Encoder
from biencoder.data.files.beir import Collection, load_collection
from biencoder.demo.mini_lm import find_model
from biencoder.model.parity import lowest_cosine
from biencoder.model.runtimes.runtime import RUNTIMES, Runtime, find_runtime, size
from biencoder.model.runtimes.runtime_encoder import RuntimeEncoder
from biencoder.retrieval.evaluate import DECIDING, evaluate

MINI_LM = "MiniLM-L6"
TOKENS = {"vocab_size": 30522, "pad_token_id": 0, "bos_token_id": 101, "eos_token_id": 102}  # MiniLM's
RANDOM: dict[str, tuple[str, str, dict[str, Any]]] = {  # configuration, pooling, sizes
    "ModernBERT": (
        "ModernBertConfig",
        "mean",
        {"hidden_size": 384, "intermediate_size": 576, "num_hidden_layers": 7, "num_attention_heads": 6}
        | {"cls_token_id": 101, "sep_token_id": 102},
    ),
    "Qwen3": (
        "Qwen3Config",
        "last",
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6}
        | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
    ),
}


class Made(NamedTuple):
    """A model in sentence-transformers' layout, and what it makes of the texts.

    Attributes:
        name: of the model.
        folder: of the model.
        encoder: loaded from there.
        vectors: of the texts, ``[N, D]`` float32.
    """

    name: str
    folder: Path
    encoder: Encoder
    vectors: np.ndarray


def model_folder(name: str, folder: Path) -> Path:
    """The folder of MiniLM, or one that a random model is written to."""
    if name == MINI_LM:
        return find_model()
    import transformers

    kind, _, sizes = RANDOM[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**TOKENS, **sizes)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(find_model()).save_pretrained(folder)
    return folder


def make(asked: Namespace, name: str, texts: list[str]) -> Made:
    """Write and load a model anew."""
    source, folder = asked.output_dir / f"{name}-source", asked.output_dir / name
    for stale in (source, folder):
        shutil.rmtree(stale, ignore_errors=True)
    pooling = RANDOM[name][1] if name in RANDOM else "auto"
    Encoder.load(model_folder(name, source), pooling=pooling, max_length=asked.max_length).save(folder)
    encoder = Encoder.load(folder, device="cpu")
    return Made(name, folder, encoder, encoder.encode(texts))


def measured(made: Made, what: str, file: Path | None, vectors: np.ndarray, ndcg: float | None) -> dict[str, Any]:
    """The figures of a row."""
    return {
        "model": made.name,
        "file": what,
        "megabytes": None if file is None else size(file) / 1e6,
        "cosine": lowest_cosine(vectors, made.vectors),
        "difference": float(np.abs(vectors - made.vectors).max()),
        "ndcg": ndcg,
    }


def of_files(made: Made, runtime: Runtime, texts: list[str], collection: Collection) -> list[dict[str, Any]]:
    """Write both files of a runtime, and measure each."""
    rows = []
    for file in (runtime.write(made.encoder, made.folder), runtime.write_int8(made.folder)):
        runs = RuntimeEncoder(runtime.session(file), made.encoder)
        ndcg = evaluate(runs, collection).metrics[DECIDING] if made.name == MINI_LM else None
        rows.append(measured(made, str(file.relative_to(made.folder)), file, runs.encode(texts), ndcg))
        print(rows[-1], flush=True)
    return rows


def by_backend(asked: Namespace, made: Made, backend: str, python: Path, texts: list[str]) -> dict[str, Any]:
    """What sentence-transformers, in an environment of its own, makes of the float32 file."""
    given, found = asked.output_dir / "texts.json", asked.output_dir / f"{made.name}-{backend}.npy"
    given.write_text(json.dumps(texts), encoding="utf-8")
    script = ROOT / "benchmarks" / "backend.py"
    words = map(str, (python, "-I", script, made.folder.resolve(), backend, given.resolve(), found.resolve()))
    subprocess.run(list(words), check=True)
    row = measured(made, f"the same by sentence-transformers, backend {backend}", None, np.load(found), None)
    print(row, flush=True)
    return row


def cells(row: dict[str, Any], baseline: float | None) -> list[str]:
    """A row of the table; nDCG@10 also against the model's own."""
    megabytes, ndcg = row["megabytes"], row["ndcg"]
    return [
        row["model"],
        row["file"],
        "" if megabytes is None else f"{megabytes:.1f}",
        f"{row['cosine']:.7f}",
        f"{row['difference']:.1e}",
        "" if ndcg is None or baseline is None else f"{ndcg:.4f} ({ndcg / baseline - 1:+.2%})",
    ]


def main() -> None:
    """Export, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="BEIR folder: its documents are the texts")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the exported models")
    parser.add_argument("--texts", type=int, default=1000, help="documents whose vectors are compared")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--models", nargs="+", default=[MINI_LM, *RANDOM], help="names in this file")
    for name in RUNTIMES:
        parser.add_argument(f"--{name}-python", type=Path, help=f"Python with sentence-transformers[{name}]")
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    collection = load_collection(asked.data)
    texts = list(collection.corpus_texts[: asked.texts])
    rows: list[dict[str, Any]] = []
    baseline = None
    for name in asked.models:
        made = make(asked, name, texts)
        if name == MINI_LM:
            baseline = evaluate(made.encoder, collection).metrics[DECIDING]
            print(f"nDCG@10 of {name}: {baseline:.4f}", flush=True)
        for runtime in RUNTIMES:
            rows += of_files(made, find_runtime(runtime), texts, collection)
            if (python := getattr(asked, f"{runtime}_python")) is not None:
                rows.append(by_backend(asked, made, runtime, python, texts))
    save(asked, "export", rows)
    own = "" if baseline is None else f" (the model: {baseline:.4f})"
    columns = ["model", "file", "MB", "lowest cosine", "largest difference", f"nDCG@10{own}"]
    title = f"Vectors of {len(texts)} documents of {asked.data.name}, {asked.max_length} tokens"
    print_table(title, columns, [cells(row, baseline) for row in rows])


if __name__ == "__main__":
    main()
