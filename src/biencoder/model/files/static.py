"""Folders of static embeddings, as sentence-transformers, model2vec and we write them.

All of them are a table of vectors in a safetensors file and a ``tokenizer.json`` beside it.
"""

from pathlib import Path

from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from biencoder.model.architectures.static import StaticModel
from biencoder.model.files.json_files import inside, read_json

MODULE = "StaticEmbedding"
TABLE, MODEL2VEC_TABLE = "embedding.weight", "embeddings"
WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"


def static_place(folder: Path) -> Path | None:
    """Where in a model folder the table is; None for models of other kinds.

    Raises:
        UserError: ``modules.json`` or ``config.json`` is damaged.
    """
    modules = read_json(folder / "modules.json", list)
    if modules:
        first = modules[0] if isinstance(modules[0], dict) else {}
        is_ours = str(first.get("type", "")).rsplit(".", 1)[-1] == MODULE
        return inside(folder, first.get("path", "")) if is_ours else None
    return folder if is_model2vec(folder) else None


def is_model2vec(folder: Path) -> bool:
    """Whether ``config.json`` says so; raises what :func:`static_place` does."""
    return (read_json(folder / "config.json") or {}).get("model_type") == "model2vec"


def load_static(place: Path) -> StaticModel:
    """The table as a backbone, in float32.

    Raises:
        ValueError: there is no table, or its parts do not fit one another.
        SafetensorError: a damaged file.
    """
    if not (place / WEIGHTS).is_file():
        raise ValueError(f"it has no {WEIGHTS} with the vectors of its tokens")
    tensors = load_file(place / WEIGHTS)
    table = tensors[TABLE] if TABLE in tensors else _of_model2vec(tensors)
    if table.ndim != 2 or not table.numel():
        raise ValueError(f"its table of vectors has the shape {list(table.shape)}")
    model = StaticModel.of(table.float().contiguous())
    model.name_or_path = str(place)
    return model


def _of_model2vec(tensors: dict[str, Tensor]) -> Tensor:
    """A row for each token: model2vec lets tokens share rows, and scales each token's row by a weight."""
    if MODEL2VEC_TABLE not in tensors:
        raise ValueError(f"its {WEIGHTS} holds neither {TABLE} nor {MODEL2VEC_TABLE}")
    table = tensors[MODEL2VEC_TABLE].float()
    if table.ndim != 2:
        return table  # which is refused
    if (rows := tensors.get("mapping")) is not None:
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(table):
            raise ValueError(f"its mapping names rows beyond the {len(table):,} of its table")
        table = table[rows.long()]
    if (weights := tensors.get("weights")) is not None:
        if weights.shape != (len(table),):
            raise ValueError(f"it has weights for {weights.numel():,} tokens and vectors for {len(table):,}")
        table = table * weights.float()[:, None]
    return table


def static_tokenizer(place: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a table; nothing stands before or behind a text.

    Raises:
        ValueError: there is none, or a damaged one.
    """
    if not (place / TOKENIZER).is_file():
        raise ValueError(f"no {TOKENIZER}")
    try:
        backend = Tokenizer.from_file(str(place / TOKENIZER))
    except Exception as error:  # the library raises no narrower one
        raise ValueError(f"{TOKENIZER} cannot be read: {error}") from error
    return without_special_tokens(backend)


def without_special_tokens(backend: Tokenizer) -> PreTrainedTokenizerBase:
    """The same tokenizer, changed so that it puts nothing before or behind a text and cuts none."""
    backend.no_truncation()
    backend.no_padding()
    backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    unknown = getattr(backend.model, "unk_token", None)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **({"unk_token": unknown} if unknown else {}))


def check_vocabulary(model: StaticModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that knows tokens without a vector.

    Raises:
        ValueError: says how many there are of each.
    """
    tokens, vectors = 1 + max(tokenizer.get_vocab().values(), default=-1), model.config.vocab_size
    if tokens > vectors:
        raise ValueError(f"its tokenizer has {tokens:,} tokens, and its table {vectors:,} vectors")
