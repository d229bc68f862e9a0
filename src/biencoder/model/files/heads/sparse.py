"""The files of a model with a weight for each token. sentence-transformers has no module for it, and says so."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from biencoder.model.files.heads.dense_layers import write_weights
from biencoder.model.files.json_files import write_json

SPARSE_LINEAR = "SparseLinear"


def write_sparse(
    folder: Path, weights: Sequence[Mapping[str, Tensor]], transformer: Mapping[str, Any], sentence: Mapping[str, Any]
) -> None:
    """Write the modules of a sparse model.

    Args:
        folder: of the model.
        weights: of its one linear layer, by name.
        transformer: what ``sentence_bert_config.json`` holds for every kind of model.
        sentence: the same of ``config_sentence_transformers.json``.
    """
    (layer,) = weights
    place = folder / f"1_{SPARSE_LINEAR}"
    write_json(place / "config.json", {"in_features": layer["linear.weight"].shape[1], "activation_function": "ReLU"})
    write_weights(place, layer)
    write_json(folder / "sentence_bert_config.json", transformer)
    own = {"similarity_fn_name": "dot"}
    write_json(folder / "config_sentence_transformers.json", {**sentence, **own})
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": place.name, "type": f"biencoder.{SPARSE_LINEAR}"},
    ]
    write_json(folder / "modules.json", modules)
