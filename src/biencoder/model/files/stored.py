"""The weights of a model on disk, read one tensor at a time."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from biencoder.errors import UserError
from biencoder.model.files.data_only import shards
from biencoder.model.files.pretrained import load_checked, locate
from biencoder.model.files.settings import transformer_place

POOLER = "pooler."  # no pooling here uses it, and some files lack it


class StoredWeights:
    """A model's weights by the names that they have in its backbone.

    Files written with a head have a prefix before the names. Where transformers would rename or convert weights (old
    LayerNorm names, fused matrices), we load the model whole instead, in float32.

    Args:
        path: model folder or hub name.
        names: of all tensors of the backbone.
        prefix: what may stand before each name in the file.
        trust_remote_code: run code that comes with the model where it must be loaded whole.

    Raises:
        UserError: no such model, one without safetensors files, or a damaged one.
    """

    def __init__(self, path: str | Path, names: Iterable[str], prefix: str, *, trust_remote_code: bool = False) -> None:
        self._stack = ExitStack()
        self._place: dict[str, tuple[Any, str]] = {}
        self._loaded: dict[str, Tensor] = {}
        folder = locate(path)
        wanted = list(names)
        found = self._open(transformer_place(folder))
        for name in wanted:
            key = next((key for key in (name, f"{prefix}.{name}") if key in found), None)
            if key is not None:
                self._place[name] = (found[key], key)
        if any(name not in self._place and not name.startswith(POOLER) for name in wanted):
            self._loaded = load_checked(folder, path, None, trust_remote_code=trust_remote_code).state_dict()
            self._place = {}

    def _open(self, folder: Path) -> dict[str, Any]:
        """The opened file that holds each tensor; empty for a damaged folder, which fails when it is loaded."""
        try:
            files = [self._stack.enter_context(safe_open(path, framework="pt")) for path in _files(folder)]
        except (SafetensorError, OSError, ValueError, UserError):
            return {}
        return {key: file for file in files for key in file.keys()}  # noqa: SIM118 - no mapping

    def __contains__(self, name: str) -> bool:
        return name in self._place or name in self._loaded

    def __getitem__(self, name: str) -> Tensor:
        if name in self._loaded:
            return self._loaded[name]
        file, key = self._place[name]
        tensor: Tensor = file.get_tensor(key)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading the tensor."""
        if name in self._loaded:
            return tuple(self._loaded[name].shape)
        file, key = self._place[name]
        return tuple(file.get_slice(key).get_shape())

    def __enter__(self) -> "StoredWeights":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one, or the shards that its index names."""
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    return [folder / name for name in shards(folder)]
