"""Show transformers only the data of a model folder, and no setting that makes it run code or open other files.

A model folder may come from anyone. transformers reads much in it that is neither weights nor vocabulary: pickled
checkpoints of several kinds, Python files that ``auto_map`` names, kernels of the hub that ``attn_implementation``
names, adapters, and other weight files that ``config.json`` points to. We show it a folder without any of that.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from biencoder.errors import UserError
from biencoder.model.files.json_files import read_json
from biencoder.model.files.settings import ADAPTER_CONFIG

INDEX = "model.safetensors.index.json"
SHOWN = (".safetensors", ".json", ".txt", ".model")  # weights, settings, vocabularies and merges, sentencepiece
HIDDEN = (ADAPTER_CONFIG, "generation_config.json")

# At any depth of config.json and tokenizer_config.json.
UNSAFE_SETTINGS = (
    "auto_map",
    "trust_remote_code",
    "attn_implementation",
    "experts_implementation",
    "kernel_config",
    "fusion_config",
    "distributed_config",
    "configuration_files",
    "transformers_weights",
    "custom_pipelines",
    "name_or_path",
)
UNSAFE_BEGINNINGS = ("_attn_implementation", "_experts_implementation", "_name_or_path")
UNSAFE_ENDINGS = ("_file", "_files")  # of tokenizer_config.json: paths of vocabularies


@contextlib.contextmanager
def data_only(folder: Path, trust_remote_code: bool) -> Iterator[Path]:
    """A temporary folder with links to the data of a model folder; the folder itself if its code is trusted.

    Raises:
        UserError: a file of settings is damaged.
        ValueError: the weights are quantised, or the index names a file that is not a safetensors file of the folder.
    """
    _refuse_quantised(folder)
    shards(folder)
    if trust_remote_code:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="biencoder-model-") as name:
        seen = Path(name)
        for file in folder.iterdir():
            if file.suffix not in SHOWN or file.name in HIDDEN or not file.is_file():
                continue
            if file.name in ("config.json", "tokenizer_config.json"):
                settings = _harmless(read_json(file), endings=file.name != "config.json")
                (seen / file.name).write_text(json.dumps(settings), encoding="utf-8")
            else:
                (seen / file.name).symlink_to(file.resolve())
        yield seen


def refuse_links_out(folder: Path, where: str) -> None:
    """Stop at a link in a model folder that leads out of it; links of the hub's cache lead to its own blobs.

    Raises:
        UserError: names the link; begins with ``where``.
    """
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    for place in (home, *(inside for inside in home.iterdir() if inside.is_dir() and not inside.is_symlink())):
        for entry in place.iterdir():
            if entry.is_symlink() and not any(_leads_into(entry, root) for root in allowed):
                raise UserError(
                    f"{where}: {entry.relative_to(home)} is a link that leads out of the folder. A model from "
                    "someone else could read your files that way. If the model is yours, put the file itself there"
                )


def _leads_into(link: Path, root: Path) -> bool:
    try:
        return link.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # links in a circle
        return False


def _harmless(value: Any, *, endings: bool) -> Any:
    if isinstance(value, dict):
        return {key: _harmless(v, endings=endings) for key, v in value.items() if not _is_unsafe(key, endings)}
    return [_harmless(item, endings=endings) for item in value] if isinstance(value, list) else value


def _is_unsafe(key: str, endings: bool) -> bool:
    return key in UNSAFE_SETTINGS or key.startswith(UNSAFE_BEGINNINGS) or (endings and key.endswith(UNSAFE_ENDINGS))


def _refuse_quantised(folder: Path) -> None:
    config = read_json(folder / "config.json") or {}
    if config.get("quantization_config"):
        raise ValueError(
            "its weights are quantised (quantization_config in config.json), which biencoder does not handle"
        )


def shards(folder: Path) -> list[str]:
    """The files that a folder's index of weights names, sorted; empty without an index.

    Raises:
        ValueError: it names anything but a safetensors file of the folder.
    """
    index = read_json(folder / INDEX)
    if index is None:
        return []
    names = index.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{INDEX} holds no weight_map from weights to files")
    for name in set(names.values()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{INDEX} names {name!r}, and only *.safetensors files of this folder are read")
    return sorted(set(names.values()))
