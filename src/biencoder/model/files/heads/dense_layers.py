"""The linear layers of a model folder: sentence-transformers' ``Dense`` modules, a folder each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from biencoder.errors import UserError
from biencoder.files import system_errors
from biencoder.model.files.json_files import read_json, write_json
from biencoder.model.heads.projection import ACTIVATIONS, DenseLayer

WEIGHTS = "model.safetensors"
VECTOR = "sentence_embedding"  # their name for the one vector of a text
TOKENS = "token_embeddings"  # and for the vectors of its tokens


def read_layer(folder: Path, of: str = VECTOR) -> DenseLayer:
    """What the folder of a ``Dense`` module says of it; ``of`` is what the layer takes and gives.

    Raises:
        UserError: no such module, a damaged one, or one that biencoder does not run.
    """
    path = folder / "config.json"
    config = read_json(path)
    if config is None:
        raise UserError(f"{path}: missing, though modules.json names it; the size of the layer is not known")
    sizes = [config.get(name) for name in ("in_features", "out_features")]
    if any(type(size) is not int or size < 1 for size in sizes):
        raise UserError(f"{path}: in_features and out_features must be numbers of dimensions")
    places = (config.get("module_input_name") or VECTOR, config.get("module_output_name") or VECTOR)
    if places != (of, of):
        raise UserError(f"{path}: the layer goes from {places[0]} to {places[1]}; biencoder runs this one on {of}")
    return DenseLayer(
        inputs=sizes[0],
        outputs=sizes[1],
        bias=bool(config.get("bias", True)),
        activation=_activation(config.get("activation_function", "torch.nn.modules.activation.Tanh"), path),
        residual=bool(config.get("use_residual", False)),
    )


def _activation(named: Any, path: Path) -> str:
    module, _, name = str(named).rpartition(".")
    if name not in ACTIVATIONS or module.split(".")[0] != "torch":
        raise UserError(
            f"{path}: the activation {named} is not one that biencoder runs; known: {', '.join(ACTIVATIONS)}"
        )
    return name


def read_weights(folders: Sequence[Path]) -> list[dict[str, Tensor]]:
    """The weights of each layer, in float32.

    Raises:
        ValueError: a folder without a safetensors file.
        SafetensorError: a damaged one.
    """
    for folder in folders:
        if not (folder / WEIGHTS).is_file():
            raise ValueError(
                f"{folder.name} has no {WEIGHTS}. biencoder does not read pytorch_model.bin, because a pickle can run "
                "code. To convert the model, load it with sentence-transformers and call save_pretrained"
            )
    return [{name: weight.float() for name, weight in load_file(folder / WEIGHTS).items()} for folder in folders]


def write_layer(folder: Path, layer: DenseLayer, weights: Mapping[str, Tensor], of: str = VECTOR) -> None:
    """Write the folder of a ``Dense`` module, as every version of sentence-transformers since 2 reads it."""
    kind = ACTIVATIONS[layer.activation]
    config: dict[str, Any] = {
        "in_features": layer.inputs,
        "out_features": layer.outputs,
        "bias": layer.bias,
        "activation_function": f"{kind.__module__}.{kind.__name__}",
    }
    if of != VECTOR:
        config |= {"module_input_name": of, "module_output_name": of}
    if layer.residual:  # releases before 5.7 do not know it
        config["use_residual"] = True
    write_json(folder / "config.json", config)
    write_weights(folder, weights)


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write what :func:`read_weights` reads."""
    with system_errors(folder):
        save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, folder / WEIGHTS)
