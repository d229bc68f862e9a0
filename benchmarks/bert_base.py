"""A second shape: a model of BERT-base's size with random weights, cls pooling and 512 tokens. Good for speed only.

Run as ``python -m benchmarks.bert_base FOLDER`` by `benchmarks.workload`, in a process of its own.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from biencoder.demo.mini_lm import find_model
from biencoder.model.files.saving import save_model
from biencoder.model.files.settings import ModelSettings


def main() -> None:
    """Write the model, with MiniLM's tokenizer, which is BERT's own."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(find_model())
    settings = ModelSettings(pooling="cls", normalize=True, max_length=512, similarity="cosine")
    save_model(Path(sys.argv[1]), BertModel(BertConfig()), tokenizer, settings)


if __name__ == "__main__":
    main()
