"""The files of a model with several heads: a dense model, and a file of weights for each other head.

It is the layout of BAAI/bge-m3, whose files of weights are pickles. biencoder reads those as data. It writes
safetensors files of the same names, and a file beside them that says how the heads work together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from biencoder.config.choices import DENSE, MULTI, SPARSE
from biencoder.errors import UserError, first_line
from biencoder.files import system_errors
from biencoder.model.files.heads.pickled import read_pickled
from biencoder.model.files.json_files import read_json, write_json

HEADS_FILE = "biencoder_heads.json"
WEIGHTS_FILES = {SPARSE: "sparse_linear", MULTI: "colbert_linear"}
PICKLED, SAFE = ".pt", ".safetensors"
PICKLED_HEADS = [f"{name}{PICKLED}" for name in WEIGHTS_FILES.values()]
SAFE_HEADS = [f"{name}{SAFE}" for name in WEIGHTS_FILES.values()]
USUAL_WEIGHTS = {DENSE: 1.0, SPARSE: 0.3, MULTI: 1.0}  # of scores: as FlagEmbedding trains BGE-M3
LINEAR = "linear."  # the name of the layer in a head, which the files leave out


@dataclass(frozen=True)
class Together:
    """How the heads of a model work together.

    Attributes:
        heads: their kinds, in the order of :data:`~biencoder.config.choices.HEADS`.
        weights: of the similarity of each in the sum.
        skips_first: the first token of a text has no vector.
    """

    heads: tuple[str, ...]
    weights: tuple[float, ...]
    skips_first: bool


def read_together(folder: Path) -> Together | None:
    """How the heads of a model work together; None for a model with one head.

    Raises:
        UserError: a damaged file, or one without the weights that it names.
    """
    path = folder / HEADS_FILE
    said = read_json(path)
    if said is None:
        others = [head for head in WEIGHTS_FILES if _file_of(folder, head) is not None]
        heads = (DENSE, *others)
        return Together(heads, tuple(USUAL_WEIGHTS[head] for head in heads), skips_first=True) if others else None
    heads, weights = said.get("heads"), said.get("weights")
    known = [DENSE, *WEIGHTS_FILES]
    if not isinstance(heads, list) or heads != [head for head in known if head in heads] or heads[:1] != [DENSE]:
        raise UserError(f"{path}: heads must be a list of {', '.join(known)}, in this order, that begins with {DENSE}")
    if not isinstance(weights, list) or len(weights) != len(heads) or not all(_is_weight(each) for each in weights):
        raise UserError(f"{path}: weights must be a list of one number above 0 for each head")
    for head in heads[1:]:
        if _file_of(folder, head) is None:
            raise UserError(f"{folder / WEIGHTS_FILES[head]}{SAFE}: missing, though {HEADS_FILE} names the head {head}")
    return Together(tuple(heads), tuple(map(float, weights)), bool(said.get("skip_first_token", False)))


def read_head(folder: Path, head: str) -> dict[str, Tensor]:
    """The weights of a head's linear layer, by the names that the head has for them, in float32.

    Raises:
        UserError: a damaged file, or one that holds something else than a linear layer.
    """
    path = _file_of(folder, head)
    assert path is not None
    try:
        found = read_pickled(path) if path.suffix == PICKLED else load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: is damaged or cut off: {first_line(error)}") from error
    shapes = {name: list(tensor.shape) for name, tensor in found.items()}
    weight = found.get("weight")
    if weight is None or weight.ndim != 2 or not shapes.keys() <= {"weight", "bias"}:
        raise UserError(f"{path}: a linear layer with a weight and a bias is wanted there; it holds {shapes}")
    if shapes.get("bias", shapes["weight"][:1]) != shapes["weight"][:1]:
        raise UserError(f"{path}: its weight and bias do not fit each other: {shapes}")
    return {LINEAR + name: tensor.float() for name, tensor in found.items()}


def write_together(folder: Path, together: Together, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write what :func:`read_together` and :func:`read_head` read.

    Args:
        folder: of the model.
        together: how the heads work together.
        weights: of the linear layer of each head but the dense one, by its kind.
    """
    for head in together.heads[1:]:
        file = folder / f"{WEIGHTS_FILES[head]}{SAFE}"
        layer = {name.removeprefix(LINEAR): weight for name, weight in weights[head].items()}
        with system_errors(file):
            save_file({name: weight.detach().cpu().contiguous() for name, weight in layer.items()}, file)
    said = {"heads": together.heads, "weights": together.weights, "skip_first_token": together.skips_first}
    write_json(folder / HEADS_FILE, said)


def _file_of(folder: Path, head: str) -> Path | None:
    """Where the weights of a head are: in safetensors, or else in a pickle."""
    paths = [folder / f"{WEIGHTS_FILES[head]}{suffix}" for suffix in (SAFE, PICKLED)]
    return next((path for path in paths if path.is_file()), None)


def _is_weight(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 < value < float("inf")
