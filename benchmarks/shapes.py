"""Models of the shapes of real ones with random weights, and texts of words that are a token each: good for speed only.

Nothing is downloaded, so that `benchmarks.gpu` runs wherever PyTorch and transformers do.
"""

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedTokenizerFast

from biencoder.model.files.saving import save_model
from biencoder.model.files.settings import ModelSettings

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = 20_000
QUERY_WORDS = 12
ROBERTA = {
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "type_vocab_size": 1,
    "max_position_embeddings": 514,
}
SMALL = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 96}


@dataclass(frozen=True)
class Shape:
    """A model's architecture.

    Attributes:
        config: class of its configuration in transformers.
        pooling: of its vectors.
        sizes: arguments of the configuration; the class's own for the others.
        small: arguments that make it a toy of the same kind, for a run on a CPU.
        few_layers: layers with which all kinds of layers are there.
    """

    config: str
    pooling: str
    sizes: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)
    few_layers: int = 2


MINI_LM = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
MODERN = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
QWEN3 = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}

SHAPES = {
    "MiniLM-L6": Shape("BertConfig", "mean", MINI_LM, SMALL),
    "BERT-base": Shape("BertConfig", "cls", {}, SMALL),
    "XLM-R-base": Shape("XLMRobertaConfig", "cls", ROBERTA | {"vocab_size": 250_002}, SMALL | {"vocab_size": 20_100}),
    "MPNet-base": Shape("MPNetConfig", "mean", ROBERTA, SMALL),
    "ModernBERT-base": Shape("ModernBertConfig", "mean", MODERN, SMALL | {"local_attention": 8}, few_layers=4),
    "Qwen3-0.6B": Shape("Qwen3Config", "last", QWEN3, SMALL | {"num_key_value_heads": 1, "head_dim": 32}),
}


def write_model(folder: Path, shape: Shape, *, small: bool, few_layers: bool = False, dropout: bool = True) -> Path:
    """Write a model folder, if it is not there yet, and return it.

    Args:
        folder: for the model.
        shape: its architecture.
        small: a toy of the same kind.
        few_layers: only as many layers as show all kinds of layers.
        dropout: as the model has it; else none.
    """
    if folder.is_dir():
        return folder
    sizes = shape.sizes | (shape.small if small else {})
    if few_layers:
        sizes |= {"num_hidden_layers": shape.few_layers}
    if not dropout:
        sizes |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    torch.manual_seed(0)
    model = AutoModel.from_config(getattr(transformers, shape.config)(**sizes))
    settings = ModelSettings(pooling=shape.pooling, normalize=True, max_length=512, similarity="cosine")
    save_model(folder, model, _tokenizer(), settings)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, in ``[CLS]`` and ``[SEP]``."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *map(_word, range(WORDS))))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)


def _word(number: int) -> str:
    return f"w{number}"


def random_text(draw: random.Random, length: int) -> str:
    """A text of so many tokens, special ones included."""
    return " ".join(_word(draw.randrange(WORDS)) for _ in range(max(1, length - 2)))


def write_pairs(path: Path, count: int, max_length: int) -> tuple[list[str], list[str]]:
    """Write training pairs and return them: short queries, and passages whose lengths are spread as those of answers.

    Half of the passages are longer than about 170 tokens; those beyond ``max_length`` are cut, as the lognormal
    distribution of real answers is.
    """
    draw = random.Random(0)
    queries = [random_text(draw, draw.randint(QUERY_WORDS // 2, 2 * QUERY_WORDS)) for _ in range(count)]
    lengths = (min(max_length, max(4, round(math.exp(draw.gauss(math.log(170), 0.8))))) for _ in range(count))
    passages = [random_text(draw, length) for length in lengths]
    rows = ({"query": query, "pos": [passage]} for query, passage in zip(queries, passages, strict=True))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return queries, passages
