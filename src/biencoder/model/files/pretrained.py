"""Find and load models on disk, and refuse damaged ones."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from biencoder.errors import UserError, first_line
from biencoder.model.adapting.lora import load_adapter, merge_lora
from biencoder.model.dropout import carried, use_own_dropout
from biencoder.model.files.data_only import data_only, refuse_links_out
from biencoder.model.files.heads.combined import PICKLED_HEADS
from biencoder.model.files.json_files import read_json
from biencoder.model.files.settings import ADAPTER_CONFIG, adapter_base, read_settings, transformer_place
from biencoder.model.files.static import check_vocabulary, load_static, static_place, static_tokenizer

logger = logging.getLogger(__name__)

# What transformers raises for folders that somebody wrote nonsense into.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError, AssertionError)

# The names under which architectures keep the dropouts that act in a backbone.
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "hidden_dropout",
)
NOT_DOWNLOADED = [
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.h5", "*.msgpack"),
    *("*.onnx", "*.onnx_data", "openvino/*"),
]


def locate(path: str | Path, flag: str = "--model") -> Path:
    """The folder of a model: the path itself, or the hub's cache for a name like ``BAAI/bge-small-en-v1.5``.

    Args:
        path: folder or hub name.
        flag: where the person named it, for messages.

    Raises:
        UserError: there is no such folder or model, or the folder has links that lead out of it.
    """
    folder = _find(path, flag)
    refuse_links_out(folder, f"{flag} {path}")
    return folder


def _find(path: str | Path, flag: str) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        names = ("config.json", ADAPTER_CONFIG)
        places = (folder, transformer_place(folder))
        is_model = any((place / name).is_file() for name in names for place in places)
        if not is_model and static_place(folder) is None:
            raise UserError(f"{flag} {path}: no model in this folder (it has no config.json)")
        return folder
    if folder.is_file():
        raise UserError(f"{flag} {path}: is a file; name the folder that holds the model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(str(path), ignore_patterns=NOT_DOWNLOADED))
        snapshot_download(str(path), allow_patterns=PICKLED_HEADS)  # which are read as data
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{flag} {path}: no such folder, and the model hub does not have it ({first_line(error)})"
        ) from error


def load_backbone(
    folder: Path, dropout: float | None = None, *, trust_remote_code: bool = False, merge_adapter: bool = True
) -> PreTrainedModel:
    """The transformer alone, in float32, with our dropout and its pooler frozen.

    No pooling here uses the pooler (BERT's dense layer on the first token). We keep it, so that the saved model is
    whole, and freeze it, so that data-parallel training does not wait for a gradient that never comes.

    Args:
        folder: of the model.
        dropout: probability of every dropout; None for the configuration's. The saved configuration stays as it is.
        trust_remote_code: run code that comes with the model, and let its configuration choose attention kernels.
        merge_adapter: add an adapter to the weights of its base; else it stands beside them, and is what is saved.
    """
    base = adapter_base(folder)
    if (place := static_place(folder)) is not None:
        backbone = load_static(place)
        check_vocabulary(backbone, static_tokenizer(place))
        return backbone
    if base is None:
        backbone = _load_whole(folder, dropout, trust_remote_code)
    else:
        backbone = load_backbone(_base_folder(folder, base), dropout, trust_remote_code=trust_remote_code)
        with quiet():
            load_adapter(backbone, folder, read_json(folder / ADAPTER_CONFIG))
        if merge_adapter:
            merge_lora(backbone)
            backbone.requires_grad_(True)
    pooler = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)
    use_own_dropout(backbone)
    return backbone


def _base_folder(folder: Path, base: str) -> Path:
    """Where the base model of an adapter is. The log names it, because the adapter's author chose it."""
    said = f"{folder / ADAPTER_CONFIG}: base model"
    try:
        found = _find(base, said)
    except UserError as error:
        raise UserError(
            f"--model {folder}: is an adapter, and its base model {base} is missing; put it there, or set "
            f"base_model_name_or_path in {folder / ADAPTER_CONFIG} to where it is"
        ) from error
    refuse_links_out(found, f"{said} {base}")
    if adapter_base(found) is not None:
        raise UserError(
            f"--model {folder}: is an adapter, and its base model {base} is one too; merge that with its own base first"
        )
    logger.info("%s is an adapter; it is merged into its base model, %s", folder, base)
    return found


def _load_whole(folder: Path, dropout: float | None, trust_remote_code: bool) -> PreTrainedModel:
    with data_only(transformer_place(folder), trust_remote_code) as seen:
        config = AutoConfig.from_pretrained(seen, trust_remote_code=trust_remote_code)
        own = {name: getattr(config, name) for name in DROPOUTS if hasattr(config, name)} if dropout is not None else {}
        for name in own:
            setattr(config, name, dropout)
        backbone = load_weights(AutoModel, seen, config, trust_remote_code=trust_remote_code)
    backbone.name_or_path = backbone.config.name_or_path = str(folder)
    for name, value in own.items():
        setattr(backbone.config, name, value)
    return backbone


def load_weights(kind: Any, folder: Path, config: Any, *, trust_remote_code: bool) -> PreTrainedModel:
    """A model in float32, all of whose weights (but a backbone's pooler) lie in the folder's safetensors files.

    Args:
        kind: the class of transformers that makes it, such as ``AutoModel``.
        folder: what :func:`data_only` gives.
        config: its configuration.
        trust_remote_code: see :func:`load_backbone`.

    Raises:
        ValueError: no safetensors file, or one that lacks weights or holds some of another shape.
    """
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            "it has no *.safetensors file. biencoder does not read pytorch_model.bin, because a pickle can run code. "
            "To convert one, load it with transformers and call save_pretrained"
        )
    with quiet():
        loaded: tuple[PreTrainedModel, dict[str, Any]] = kind.from_pretrained(
            folder,
            config=config,
            trust_remote_code=trust_remote_code,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model, report = loaded
    _refuse_random_weights(report)
    if report["missing_keys"]:
        model.pooler = None  # of random numbers
    return model


def checkpoint_activations(backbone: PreTrainedModel, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
    """Recompute activations in the backward pass instead of keeping them (Chen et al. 2016).

    Args:
        backbone: of the model.
        options: of ``torch.utils.checkpoint``; non-reentrant unless said otherwise, for the reentrant kind fails under
            data-parallel training ("marked ready twice").
        kwargs: as transformers takes them.
    """
    new_name = getattr(backbone, "activation_checkpointing_enable", None)  # since 5.23; the old one warns
    options = {"use_reentrant": False} | (options or {})
    (new_name or backbone.gradient_checkpointing_enable)(options, **kwargs)
    for module in backbone.modules():
        if (checkpointed := getattr(module, "_gradient_checkpointing_func", None)) is not None:
            module._gradient_checkpointing_func = partial(_with_masks, checkpointed)
    if not options["use_reentrant"]:  # which alone needs inputs with gradients; they cost a pass through frozen layers
        backbone.disable_input_require_grads()


def _with_masks(checkpointed: Callable[..., Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Checkpointing under which a layer that is computed again drops out what it did at first."""
    return checkpointed(carried(function), *args, **kwargs)


def _refuse_random_weights(report: dict[str, Any]) -> None:
    """Refuse weights that the file lacks: transformers fills them with random numbers. Only a pooler may be missing."""
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler"))
    if missing:
        raise ValueError(f"the file of weights lacks {missing[0]}, one of {len(missing)} that config.json asks for")
    for name, found, wanted in report["mismatched_keys"]:
        raise ValueError(f"{name} is {list(found)} in the file of weights and {list(wanted)} by config.json")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars and its table of weights, which we check ourselves."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, found as by :func:`locate`.

    Args:
        path: folder or hub name.
        trust_remote_code: see :func:`load_backbone`.

    Raises:
        UserError: no such model, one that biencoder does not run, or one without a tokenizer that has a vocabulary.
    """
    folder = locate(path)
    read_settings(folder)  # refuses what is no model that biencoder runs
    try:
        tokenizer = read_tokenizer(folder, trust_remote_code=trust_remote_code)
    except UNREADABLE as error:
        raise _unloadable(path, f"its tokenizer: {first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes where no vocabulary is
        raise _unloadable(path, "its tokenizer has no vocabulary")
    return tokenizer


def read_tokenizer(folder: Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder, or whatever transformers raises."""
    if (place := static_place(folder)) is not None:
        return static_tokenizer(place)
    with data_only(transformer_place(folder), trust_remote_code) as seen, quiet():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(seen, trust_remote_code=trust_remote_code)
    tokenizer.name_or_path = str(folder)
    return tokenizer


def load_checked(
    folder: Path,
    path: str | Path,
    dropout: float | None,
    *,
    trust_remote_code: bool = False,
    merge_adapter: bool = True,
) -> PreTrainedModel:
    """:func:`load_backbone` for people.

    Raises:
        UserError: what does not load, named by ``path``, with the reason.
    """
    with loading(path):
        return load_backbone(folder, dropout, trust_remote_code=trust_remote_code, merge_adapter=merge_adapter)


@contextlib.contextmanager
def loading(path: str | Path, flag: str = "--model") -> Iterator[None]:
    """Turn what is raised where a model is loaded into a `UserError` that names it by ``flag`` and ``path``."""
    try:
        yield
    except SafetensorError as error:
        raise _unloadable(path, f"its safetensors file is damaged or cut off: {first_line(error)}", flag) from error
    except UNREADABLE as error:
        raise _unloadable(path, first_line(error), flag) from error


def empty_backbone(folder: Path, path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The transformer that ``config.json`` describes, of an adapter its base's, without memory for its weights.

    Its parameters are on the meta device.

    Raises:
        UserError: an architecture that transformers does not know, or a missing base; the model is named by ``path``.
    """
    if (place := static_place(folder)) is not None:
        with loading(path):
            return load_static(place).to("meta")
    if (base := adapter_base(folder)) is not None:
        return empty_backbone(_base_folder(folder, base), base, trust_remote_code=trust_remote_code)
    with loading(path), data_only(transformer_place(folder), trust_remote_code) as seen, torch.device("meta"):
        config = AutoConfig.from_pretrained(seen, trust_remote_code=trust_remote_code)
        backbone: PreTrainedModel = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    return backbone


def weights_fingerprint(*states: Mapping[str, Tensor]) -> str:
    """A digest of the weights in some state dictionaries, with their names."""
    digest = hashlib.sha256()
    for state in states:
        for name, weight in state.items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _unloadable(path: str | Path, reason: str, flag: str = "--model") -> UserError:
    return UserError(f"{flag} {path}: cannot be loaded ({reason})")
