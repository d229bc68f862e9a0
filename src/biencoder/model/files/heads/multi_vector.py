"""The files of a multi-vector model, which PyLate and sentence-transformers 6 (``MultiVectorEncoder``) load."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from biencoder.errors import UserError
from biencoder.model.files.heads.dense_layers import write_layer
from biencoder.model.files.json_files import read_json, write_json
from biencoder.model.heads.projection import DenseLayer

MASK = "MultiVectorMask"  # of folders that sentence-transformers 6 writes
COLBERT = "ColBERT"  # the kind of model in PyLate's folders, which sentence-transformers 6 reads too
DENSE = "Dense"
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
    """Write the modules of a multi-vector model, as PyLate does; sentence-transformers 6 adds the mask and length 1.

    Args:
        folder: of the model.
        layers: the linear layers with their weights, by name.
        transformer: what ``sentence_bert_config.json`` holds for every kind of model.
        sentence: the same of ``config_sentence_transformers.json``.
        skipped: words of the vocabulary that have no vector in a document; PyLate takes any other for unknown words.
        expansion: tokens to which mask tokens fill a query; None for none.
    """
    kinds = ["Transformer", *[DENSE] * len(layers)]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" * bool(i), "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "sentence_bert_config.json", transformer)
    for number, (layer, weights) in enumerate(layers, start=1):
        write_layer(folder / f"{number}_{DENSE}", layer, weights)
    own = {
        "model_type": COLBERT,
        "similarity_fn_name": "meanmaxsim",
        "query_prefix": "",
        "document_prefix": "",
        "query_length": expansion or transformer["max_seq_length"],
        "document_length": transformer["max_seq_length"],
        "do_query_expansion": expansion is not None,
        "attend_to_expansion_tokens": expansion is not None,
        "skiplist_words": list(skipped),
    }
    write_json(folder / "config_sentence_transformers.json", {**sentence, **own})
    write_json(folder / "modules.json", modules)


@dataclass(frozen=True)
class ColBERT:
    """What a folder in PyLate's layout says of its tokens.

    Attributes:
        skipped: words that have no vector in a document.
        expansion: tokens to which mask tokens fill a query; None for none.
        prefixes: what stands before a query and before a document.
    """

    skipped: tuple[str, ...]
    expansion: int | None
    prefixes: dict[str, str]


def read_colbert(path: Path) -> ColBERT | None:
    """What ``config_sentence_transformers.json`` says of a model in PyLate's layout; None for another one.

    Raises:
        UserError: a damaged file, or an expansion of another kind.
    """
    config = read_json(path) or {}
    if config.get("model_type") != COLBERT:
        return None
    expansion = None
    if config.get("do_query_expansion", True):
        expansion = config.get("query_length", 32)
        if type(expansion) is not int or expansion < 1 or not config.get("attend_to_expansion_tokens", False):
            raise _other_expansion(path, f"of {expansion} tokens that the model does not attend to")
    prefixes = {side: config.get(f"{side}_prefix", mark) for side, mark in (("query", "[Q] "), ("document", "[D] "))}
    if not all(isinstance(prefix, str) for prefix in prefixes.values()):
        raise UserError(f"{path}: query_prefix and document_prefix must be texts")
    return ColBERT(_texts(path, config.get("skiplist_words") or []), expansion, prefixes)


def read_skipped(path: Path) -> tuple[str, ...]:
    """Words that have no vector in a document, from the configuration of a ``MultiVectorMask`` module.

    Raises:
        UserError: a damaged file, or a mask of another kind.
    """
    config = read_json(path) or {}
    words, tasks = _texts(path, config.get("skiplist_words") or []), config.get("skiplist_tasks") or DOCUMENT
    if (words and tasks != DOCUMENT) or config.get("keep_only_token_ids"):
        raise UserError(f"{path}: biencoder leaves out words of documents only (skiplist_tasks, keep_only_token_ids)")
    return words


def _texts(path: Path, words: Any) -> tuple[str, ...]:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path}: skiplist_words must be a list of texts")
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
        raise _other_expansion(path, str(expansion))
    return length


def _other_expansion(path: Path, what: str) -> UserError:
    return UserError(
        f"{path}: query expansion {what}: biencoder fills queries to a fixed length with mask tokens that the model "
        "attends to, and in no other way"
    )
