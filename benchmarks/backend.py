"""Vectors of texts by a backend of sentence-transformers, in an environment that need not hold biencoder.

python -I benchmarks/backend.py FOLDER BACKEND TEXTS.json VECTORS.npy
"""

import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

# OpenVINO computes in bfloat16 by itself where a processor has it.
OPTIONS: dict[str, dict[str, object]] = {"onnx": {}, "openvino": {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}}


def main() -> None:
    """Load the folder as it is, encode, and write the vectors."""
    folder, backend, texts, vectors = sys.argv[1:]
    model = SentenceTransformer(folder, backend=backend, device="cpu", model_kwargs=OPTIONS[backend])
    found = model.encode(json.loads(Path(texts).read_text(encoding="utf-8")), batch_size=16)
    np.save(vectors, found)


if __name__ == "__main__":
    main()
