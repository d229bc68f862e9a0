"""What a model folder says about itself beside the weights: the files that sentence-transformers reads and writes.

``modules.json`` names the steps after the transformer; a step that we do not run is an error, never a different vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from biencoder.config.choices import CLS, LAST, MEAN, MULTI, SPARSE
from biencoder.config.choices import DENSE as DENSE_HEAD
from biencoder.errors import UserError
from biencoder.model.files.heads.combined import Together, read_head, read_together, write_together
from biencoder.model.files.heads.dense_layers import TOKENS, VECTOR, read_layer, read_weights, write_layer
from biencoder.model.files.heads.multi_vector import (
    COLBERT,
    MASK,
    ColBERT,
    read_colbert,
    read_expansion,
    read_skipped,
    write_multi_vector,
)
from biencoder.model.files.heads.query_table import ROUTER, TABLE, read_router, write_router
from biencoder.model.files.heads.sparse import SPARSE_LINEAR, write_sparse
from biencoder.model.files.heads.splade import LANGUAGE_MODEL, SPLADE, check_splade, write_splade
from biencoder.model.files.json_files import inside, read_json, write_json
from biencoder.model.files.static import MODULE as STATIC
from biencoder.model.files.static import is_model2vec
from biencoder.model.heads.projection import DenseLayer
from biencoder.model.pooling import POOLINGS

POOLING_KEYS = {
    "pooling_mode_cls_token": CLS,
    "pooling_mode_mean_tokens": MEAN,
    "pooling_mode_lasttoken": LAST,
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
QUERY_PROMPTS = ("query", "search_query", "retrieval.query")
PASSAGE_PROMPTS = ("document", "passage", "corpus", "search_document", "retrieval.passage")
ADAPTER_CONFIG = "adapter_config.json"
TRANSFORMER, POOLING, DENSE, NORMALIZE = "Transformer", "Pooling", "Dense", "Normalize"
ORDER = (TRANSFORMER, POOLING, DENSE, NORMALIZE)
ORDERS = {  # by a module that no other kind of model has
    TABLE: (TRANSFORMER, LANGUAGE_MODEL, SPLADE, SPARSE_LINEAR, TABLE),
    STATIC: (STATIC, DENSE, NORMALIZE),
    MASK: (TRANSFORMER, DENSE, MASK, NORMALIZE),
    SPLADE: (TRANSFORMER, LANGUAGE_MODEL, SPLADE),
    SPARSE_LINEAR: (TRANSFORMER, SPARSE_LINEAR),
}
KNOWN = tuple(dict.fromkeys(kind for order in (ORDER, *ORDERS.values()) for kind in order))


@dataclass(frozen=True)
class ModelSettings:
    """How a model turns hidden states into vectors.

    Attributes:
        pooling: ``cls``, ``mean`` or ``last``; None where the folder does not say.
        normalize: vectors have length 1; None where the folder does not say.
        max_length: tokens a text is cut to, special tokens included; None where the folder does not say.
        lowercase: texts are put in lower case before the tokenizer.
        prompts: by name, as sentence-transformers keeps them.
        default_prompt: name of the prompt that ``encode`` applies on its own.
        similarity: ``cosine``, ``dot``, …; None where the folder does not say.
        layers: linear layers after the pooling, in order.
        static: tokens have vectors of their own, and the pooling is their mean.
        heads: what is made of a text: ``dense`` (one vector), ``multi`` (a vector for each token, by the layers, and
            nothing is pooled), ``sparse`` (a weight for each token), or several of these with commas between them. If
            they are several, the layers belong to ``multi``.
        weights: of the similarity that each of several heads gives, in their sum; empty for one head.
        skips_first: the first token of a text has no vector of its own, if there are several heads.
        expands: a sparse head gives weights to words that a text does not have too, by a masked-language head.
        query_table: the weights of a query's tokens are those of a table, if the head is sparse.
        skipped: words whose tokens have no vector in a passage of a multi-vector model.
        query_expansion: tokens to which mask tokens fill a query of a multi-vector model; None for none.
    """

    pooling: str | None = None
    normalize: bool | None = None
    max_length: int | None = None
    lowercase: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str | None = None
    layers: tuple[DenseLayer, ...] = ()
    static: bool = False
    heads: str = DENSE_HEAD
    weights: tuple[float, ...] = ()
    skips_first: bool = False
    expands: bool = False
    query_table: bool = False
    skipped: tuple[str, ...] = ()
    query_expansion: int | None = None

    @property
    def multi(self) -> bool:
        """Whether a text has a vector for each token, and nothing else."""
        return self.heads == MULTI

    @property
    def sparse(self) -> bool:
        """Whether a text has a weight for each token, and nothing else."""
        return self.heads == SPARSE

    @property
    def parts(self) -> tuple[str, ...]:
        """The kinds of the heads."""
        return tuple(self.heads.split(","))

    @property
    def combined(self) -> bool:
        """Whether there are several heads."""
        return len(self.parts) > 1

    def of_part(self, head: str) -> "ModelSettings":
        """The settings of a model that has one of these heads alone."""
        if not self.combined:
            return self
        layers = self.layers if head == MULTI else ()
        alone = replace(self, heads=head, layers=layers, weights=(), skips_first=self.skips_first and head == MULTI)
        return alone if head == DENSE_HEAD else replace(alone, pooling=MEAN, normalize=head == MULTI)

    @property
    def query_prompt(self) -> str:
        """What is put before a query."""
        return self._prompt(QUERY_PROMPTS)

    @property
    def passage_prompt(self) -> str:
        """What is put before a passage."""
        return self._prompt(PASSAGE_PROMPTS)

    def _prompt(self, names: tuple[str, ...]) -> str:
        return next((self.prompts[name] for name in names if self.prompts.get(name)), "")

    def with_prompts(self, query: str | None, passage: str | None) -> "ModelSettings":
        """These settings with other prompts; None keeps the present one."""
        prompts = {name: text for name, text in self.prompts.items() if name not in QUERY_PROMPTS + PASSAGE_PROMPTS}
        prompts["query"] = self.query_prompt if query is None else query
        prompts["document"] = self.passage_prompt if passage is None else passage
        # sentence-transformers' plain `encode(texts)` is what people index their passages with.
        default = "document" if prompts["document"] else None
        return replace(self, prompts=prompts, default_prompt=default)


def read_settings(folder: Path) -> ModelSettings:
    """The settings that a model folder holds; all of them None for a plain transformers folder.

    Raises:
        UserError: a module or a pooling that biencoder does not run.
    """
    read_json(folder / "config.json")  # what is no JSON object crashes transformers
    settings = _of_modules(folder)
    together = read_together(folder)
    return settings if together is None else _with_more_heads(folder, settings, together)


def _with_more_heads(folder: Path, settings: ModelSettings, together: Together) -> ModelSettings:
    """The settings of a dense model that has other heads too."""
    if settings.heads != DENSE_HEAD or settings.layers or settings.static or settings.normalize is False:
        raise UserError(f"{folder}: has files of several heads, which go with cosines of one pooled vector alone")
    layers: tuple[DenseLayer, ...] = ()
    if MULTI in together.heads:
        weights = read_head(folder, MULTI)
        outputs, inputs = weights["linear.weight"].shape
        layers = (DenseLayer(inputs, outputs, bias="linear.bias" in weights, activation="Identity"),)
    return replace(
        settings,
        heads=",".join(together.heads),
        weights=together.weights,
        skips_first=together.skips_first,
        normalize=True,
        layers=layers,
    )


def _of_modules(folder: Path) -> ModelSettings:
    """The settings without those heads that no module stands for."""
    steps = _steps(folder)
    if not steps:
        return _without_modules(folder)
    kinds = [kind for kind, _ in steps]
    pooling = next((_read_pooling(path / "config.json") for kind, path in steps if kind == POOLING), MEAN)
    transformer = read_json(_transformer_of(steps, folder) / "sentence_bert_config.json") or {}
    max_length = transformer.get("max_seq_length")
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise UserError(f"{folder / 'sentence_bert_config.json'}: max_seq_length must be a number of tokens")
    for kind, path in steps:
        if kind == SPLADE:
            check_splade(path / "config.json")
    colbert = read_colbert(folder / "config_sentence_transformers.json")
    if colbert is not None:
        return _of_colbert(folder, steps, max_length, transformer, colbert)
    multi, sparse = MASK in kinds, SPLADE in kinds or SPARSE_LINEAR in kinds
    if multi and NORMALIZE not in kinds:
        raise UserError(f"{folder / 'modules.json'}: biencoder runs no multi-vector model without a {NORMALIZE} module")
    return ModelSettings(
        pooling=pooling,
        static=STATIC in kinds,
        heads=MULTI if multi else SPARSE if sparse else DENSE_HEAD,
        expands=SPLADE in kinds,
        query_table=TABLE in kinds,
        skipped=next((read_skipped(path / "config.json") for kind, path in steps if kind == MASK), ()),
        query_expansion=read_expansion(folder / "sentence_bert_config.json", transformer) if multi else None,
        layers=tuple(read_layer(path, TOKENS if multi else VECTOR) for kind, path in steps if kind == DENSE),
        normalize=NORMALIZE in kinds,
        max_length=max_length,
        lowercase=bool(transformer.get("do_lower_case", False)),
        **_read_sentence_settings(folder / "config_sentence_transformers.json"),
    )


def _of_colbert(
    folder: Path, steps: list[tuple[str, Path]], max_length: int | None, transformer: dict[str, Any], found: ColBERT
) -> ModelSettings:
    """The settings of a folder in PyLate's layout."""
    if {kind for kind, _ in steps} != {TRANSFORMER, DENSE}:
        raise UserError(f"{folder / 'modules.json'}: a {COLBERT} model needs a {TRANSFORMER} and {DENSE} modules alone")
    sentence = _read_sentence_settings(folder / "config_sentence_transformers.json")
    given = {name: prompt for name, prompt in sentence["prompts"].items() if prompt}
    sentence["prompts"] = {side: prefix for side, prefix in found.prefixes.items() if prefix} | given
    return ModelSettings(
        pooling=MEAN,
        normalize=True,
        heads=MULTI,
        layers=tuple(read_layer(path) for kind, path in steps if kind == DENSE),
        skipped=found.skipped,
        query_expansion=found.expansion,
        max_length=max_length,
        lowercase=bool(transformer.get("do_lower_case", False)),
        **sentence,
    )


def _without_modules(folder: Path) -> ModelSettings:
    """Of a plain transformers folder, which says nothing, or of one that model2vec wrote."""
    if not is_model2vec(folder):
        return ModelSettings()
    config = read_json(folder / "config.json")
    return ModelSettings(pooling=MEAN, normalize=bool(config.get("normalize", False)), static=True)


def transformer_place(folder: Path) -> Path:
    """Where in a model folder the transformer is: mostly the folder itself; raises what :func:`read_settings` does."""
    return _transformer_of(_steps(folder), folder)


def _transformer_of(steps: Sequence[tuple[str, Path]], folder: Path) -> Path:
    return next((path for kind, path in steps if kind in (TRANSFORMER, LANGUAGE_MODEL)), folder)


def read_layers(folder: Path) -> list[dict[str, Tensor]]:
    """The weights of each of the heads' linear layers, in the order in which :func:`write_settings` takes them.

    Raises:
        UserError: a damaged folder.
        ValueError: a folder without a safetensors file.
    """
    together = read_together(folder)
    if together is None:
        return read_weights(_layer_folders(folder))
    return [read_head(folder, head) for head in together.heads[1:]]


def _layer_folders(folder: Path) -> list[Path]:
    """Where the weights of the head's linear layers are; raises what :func:`read_settings` does."""
    return [path for kind, path in _steps(folder) if kind in (DENSE, SPARSE_LINEAR, TABLE)]


def _steps(folder: Path) -> list[tuple[str, Path]]:
    """The kind and the folder of each module; none for a plain transformers folder."""
    path = folder / "modules.json"
    steps: list[tuple[str, Path]] = []
    for module in read_json(path, list) or []:
        if not isinstance(module, dict):
            raise UserError(f"{path}: a list of JSON objects is wanted there")
        kind, place = str(module.get("type", "")).rsplit(".", 1)[-1], inside(folder, module.get("path", ""))
        steps += read_router(place) if kind == ROUTER else [(kind, place)]
    kinds = [kind for kind, _ in steps]
    if unknown := [kind for kind in kinds if kind not in KNOWN]:
        known = ", ".join(KNOWN)
        raise UserError(
            f"{path}: the model has a {unknown[0]} module, which biencoder does not run; it handles {known}"
        )
    order = next((order for kind, order in ORDERS.items() if kind in kinds), ORDER)
    if kinds != [kind for known in order for kind in kinds if kind == known]:
        raise UserError(f"{path}: biencoder runs modules in the order {', '.join(order)} only")
    return steps


def _read_sentence_settings(path: Path) -> dict[str, Any]:
    sentence = read_json(path) or {}
    prompts = sentence.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(text is None or _is_text(text) for text in prompts.values()):
        raise UserError(f"{path}: prompts must be an object of texts")
    for name in ("default_prompt_name", "similarity_fn_name"):
        if sentence.get(name) is not None and not _is_text(sentence[name]):
            raise UserError(f"{path}: {name} must be a text")
    return {
        "prompts": {name: text or "" for name, text in prompts.items()},
        "default_prompt": sentence.get("default_prompt_name"),
        "similarity": sentence.get("similarity_fn_name"),
    }


def _is_text(value: Any) -> bool:
    """Whether it is a text that a tokenizer takes: json, unlike orjson, lets half a surrogate pair through."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def adapter_base(folder: Path) -> str | None:
    """The base model, as a folder or a hub name, of a folder that holds no model but a LoRA adapter; else None.

    Raises:
        UserError: another kind of adapter, one without a base or beside a whole model, or a damaged file.
    """
    adapter = read_json(folder / ADAPTER_CONFIG)
    if adapter is None:
        return None
    if (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: holds a whole model and an adapter, which some tools add to it and others do not; remove "
            f"{ADAPTER_CONFIG} or config.json"
        )
    if adapter.get("peft_type") != "LORA":
        kind = adapter.get("peft_type")
        raise UserError(f"{folder / ADAPTER_CONFIG}: an adapter of the kind {kind}; biencoder handles LORA only")
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{folder / ADAPTER_CONFIG}: does not name its base model, as base_model_name_or_path")
    return base


def _read_pooling(path: Path) -> str:
    config = read_json(path)
    if config is None:
        raise UserError(f"{path}: missing, though modules.json names it; the model's pooling is not known")
    if config.get("include_prompt", True) is False:
        raise UserError(f"{path}: include_prompt is false (the prompt is left out of the mean): not supported")
    mode = config.get("pooling_mode")
    modes = [name for key, name in POOLING_KEYS.items() if config.get(key)] if mode is None else mode
    names = [modes] if isinstance(modes, str) else list(modes) or [MEAN]
    pooling = {"lasttoken": LAST}.get(names[0], names[0])
    if len(names) > 1 or pooling not in POOLINGS:
        raise UserError(f"{path}: pooling {' + '.join(names)} is not supported; known: {', '.join(POOLINGS)}")
    return pooling


def write_settings(
    folder: Path, settings: ModelSettings, width: int, weights: Sequence[Mapping[str, Tensor]] = ()
) -> None:
    """Write the files from which sentence-transformers (every version since 2) rebuilds the same model.

    Args:
        folder: of the model.
        settings: with a pooling.
        width: hidden size of the backbone.
        weights: of each of the linear layers, by name; if there are several heads, of the layer of each but the first.

    Raises:
        UserError: the files have no word for the pooling.
    """
    sentence = _sentence_settings(settings)
    transformer = {"max_seq_length": settings.max_length, "do_lower_case": settings.lowercase}
    if settings.multi:
        of_tokens = list(zip(settings.layers, weights, strict=True))
        write_multi_vector(
            folder, of_tokens, transformer, sentence, skipped=settings.skipped, expansion=settings.query_expansion
        )
        return
    if settings.sparse:
        if settings.expands:
            write_splade(folder, transformer, sentence)
        else:
            write_sparse(folder, weights[:1], transformer, sentence)
        if settings.query_table:
            write_router(folder, weights[-1])
        return
    layers: Sequence[DenseLayer] = settings.layers
    if settings.combined:
        together = Together(settings.parts, settings.weights, settings.skips_first)
        write_together(folder, together, dict(zip(settings.parts[1:], weights, strict=True)))
        layers, weights = (), ()
    assert settings.pooling is not None
    if settings.pooling not in POOLING_KEYS.values():
        raise UserError(f"{folder}: sentence-transformers has no {settings.pooling} pooling to load the model with")
    first = [STATIC] if settings.static else [TRANSFORMER, POOLING]
    kinds = [*first, *[DENSE] * len(layers), *[NORMALIZE] * bool(settings.normalize)]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" * bool(i), "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    modes = {key: name == settings.pooling for key, name in POOLING_KEYS.items()}
    if not settings.static:  # which takes texts of any length
        write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width} | modes)
        write_json(folder / "sentence_bert_config.json", transformer)
    for number, (layer, state) in enumerate(zip(layers, weights, strict=True), start=len(first)):
        write_layer(folder / f"{number}_{DENSE}", layer, state)
    if settings.normalize:
        write_json(folder / f"{len(kinds) - 1}_{NORMALIZE}" / "config.json", {})
    write_json(folder / "config_sentence_transformers.json", sentence)
    write_json(folder / "modules.json", modules)


def _sentence_settings(settings: ModelSettings) -> dict[str, Any]:
    return {
        "__version__": _versions(),
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""} | settings.prompts,
        "default_prompt_name": settings.default_prompt,
        "similarity_fn_name": "cosine" if settings.normalize else settings.similarity or "dot",
    }


def _versions() -> dict[str, str]:
    """Of the libraries that wrote the model; sentence-transformers' is the format that is followed."""
    import torch
    import transformers

    return {"sentence_transformers": "5.0.0", "transformers": transformers.__version__, "pytorch": torch.__version__}
