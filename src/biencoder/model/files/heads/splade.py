"""The files of a model that weighs words by its masked-language head; sentence-transformers' ``SparseEncoder``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biencoder.errors import UserError
from biencoder.model.files.json_files import read_json, write_json

SPLADE = "SpladePooling"
LANGUAGE_MODEL = "MLMTransformer"  # releases before 5.4 had a module of its own
POOLING = {"pooling_strategy": "max", "activation_function": "relu"}


def check_splade(path: Path) -> None:
    """Refuse a ``SpladePooling`` module that is not ours.

    Raises:
        UserError: another pooling or activation.
    """
    config = read_json(path) or {}
    for name, wanted in POOLING.items():
        if config.get(name, wanted) != wanted:
            raise UserError(f"{path}: {name} {config[name]} is not supported; biencoder handles {wanted}")


def write_splade(folder: Path, transformer: Mapping[str, Any], sentence: Mapping[str, Any]) -> None:
    """Write the modules.

    Args:
        folder: of the model.
        transformer: what ``sentence_bert_config.json`` holds for every kind of model.
        sentence: the same of ``config_sentence_transformers.json``.
    """
    task = {
        "transformer_task": "fill-mask",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
        "module_output_name": "token_embeddings",
    }
    write_json(folder / "sentence_bert_config.json", {**transformer, **task})
    write_json(folder / f"1_{SPLADE}" / "config.json", {**POOLING, "embedding_dimension": None})
    version = sentence["__version__"] | {"sentence_transformers": "5.4.0"}
    own = {"__version__": version, "model_type": "SparseEncoder", "similarity_fn_name": "dot"}
    write_json(folder / "config_sentence_transformers.json", {**sentence, **own})
    types = ["base.modules.transformer.Transformer", "sparse_encoder.modules.splade_pooling.SpladePooling"]
    modules = [
        {"idx": i, "name": str(i), "path": f"1_{SPLADE}" * i, "type": f"sentence_transformers.{kind}"}
        for i, kind in enumerate(types)
    ]
    write_json(folder / "modules.json", modules)
