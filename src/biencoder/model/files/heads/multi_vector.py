"""The files of a multi-vector model, which sentence-transformers 6 loads as a ``MultiVectorEncoder``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from biencoder.errors import UserError
from biencoder.model.files.heads.dense_layers import TOKENS, write_layer
from biencoder.model.files.json_files import read_json, write_json
from biencoder.model.heads.projection import DenseLayer

MASK = "MultiVectorMask"
BASE = "sentence_transformers.base.modules"  # as of release 6, which multi-vector models came with
DENSE, NORMALIZE = "Dense", "Normalize"
TYPES = {
    "Transformer": f"{BASE}.transformer.Transformer",
    DENSE: f"{BASE}.dense.Dense",
    MASK: "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask",
    NORMALIZE: f"{BASE}.normalize.Normalize",
}
DOCUMENT = ["document"]


def write_multi_vector(
    folder: Path,
    layers: Sequence[tuple[DenseLayer, Mapping[str, Tensor]]],
    transformer: Mapping[str, Any],
    sentence: Mapping[str, Any],
    *,
    skipped: Sequence[str],
    expansion: int | None,
) -> None:
    """Write the modules of a multi-vector model.

    Args:
        folder: of the model.
        layers: the linear layers with their weights, by name.
        transformer: what ``sentence_bert_config.json`` holds for every kind of model.
        sentence: the same of ``config_sentence_transformers.json``.
        skipped: words that have no vector in a document.
        expansion: tokens to which mask tokens fill a query; None for none.
    """
    kinds = ["Transformer", *[DENSE] * len(layers), MASK, NORMALIZE]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" * bool(i), "type": TYPES[kind]} for i, kind in enumerate(kinds)
    ]
    tokens = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": TOKENS,
        "query_expansion": None if expansion is None else {"strategy": "fixed", "attend": True, "length": expansion},
    }
    write_json(folder / "sentence_bert_config.json", {**transformer, **tokens})
    for number, (layer, weights) in enumerate(layers, start=1):
        write_layer(folder / f"{number}_{DENSE}", layer, weights, TOKENS)
    mask = {"skiplist_words": list(skipped), "skiplist_tasks": DOCUMENT, "keep_only_token_ids": None}
    write_json(folder / f"{len(kinds) - 2}_{MASK}" / "config.json", mask)
    names = {"module_input_name": TOKENS, "module_output_name": TOKENS}
    write_json(folder / f"{len(kinds) - 1}_{NORMALIZE}" / "config.json", names)
    version = sentence["__version__"] | {"sentence_transformers": "6.0.0"}
    own = {"__version__": version, "model_type": "MultiVectorEncoder", "similarity_fn_name": "meanmaxsim"}
    write_json(folder / "config_sentence_transformers.json", {**sentence, **own})
    write_json(folder / "modules.json", modules)


def read_skipped(path: Path) -> tuple[str, ...]:
    """Words that have no vector in a document, from the configuration of a ``MultiVectorMask`` module.

    Raises:
        UserError: a damaged file, or a mask of another kind.
    """
    config = read_json(path) or {}
    words, tasks = config.get("skiplist_words") or [], config.get("skiplist_tasks") or DOCUMENT
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path}: skiplist_words must be a list of texts")
    if (words and tasks != DOCUMENT) or config.get("keep_only_token_ids"):
        raise UserError(f"{path}: biencoder leaves out words of documents only (skiplist_tasks, keep_only_token_ids)")
    return tuple(words)


def read_expansion(path: Path, transformer: Mapping[str, Any]) -> int | None:
    """The number of tokens to which queries are filled with mask tokens; None for none.

    Args:
        path: of the file, for messages.
        transformer: what it holds.

    Raises:
        UserError: another kind of expansion.
    """
    expansion = transformer.get("query_expansion")
    if expansion is None:
        return None
    length = expansion.get("length") if isinstance(expansion, dict) else None
    if type(length) is not int or length < 1 or expansion.get("strategy") != "fixed" or not expansion.get("attend"):
        raise UserError(
            f"{path}: query_expansion {expansion}: biencoder fills queries to a fixed length with mask tokens that the "
            "model attends to, and in no other way"
        )
    return length
